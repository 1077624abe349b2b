# make demo    from an empty machine to generated text: trains a GPT, turns it into a diffusion model, distills, evaluates
# make demo DATASET=text    the same with your own text, after: python data/text/prepare.py --input=FILE
# make shakespeare    the same with tiny Shakespeare, character by character
# make quick   sets up and runs the tests of the story, in a minute
# make test    sets up and runs every test, offline
# make grade   in a student's folder (exercises/README.md): which exercises are passed
# All may be run again: they skip what is done and continue what was interrupted. Needs python 3.10 or newer.

PYTHON ?= python3
PY = .venv/bin/python
DATASET = pydoc

# the recipe
TRAIN_AR = config/train_pydoc_ar.py
TRAIN_DIFFUSION = config/train_pydoc.py
DISTILL = config/sdtt_pydoc.py
EVALUATE = config/eval_pydoc.py
EVALUATE_ANCESTRAL = config/eval_pydoc_ancestral.py
# where everything goes
AR = out/$(DATASET)/ar
DIFFUSION = out/$(DATASET)/diffusion
SDTT = out/$(DATASET)/sdtt
EVAL = out/$(DATASET)/eval
NGRAM = out/$(DATASET)/ngram
ABOUT = data/$(DATASET)
MAKE_NGRAM = train.py --arch=ngram --dataset=$(DATASET)
GAMMA = 3
ifeq ($(DATASET),pydoc)
ABOUT = Python's language reference
AR = out/pydoc_ar
DIFFUSION = out/pydoc
SDTT = out/sdtt_pydoc
EVAL = out/demo
NGRAM = out/pydoc_ngram
PROMPT = --prompt='The "for" statement is'
endif
ifeq ($(DATASET),shakespeare_char)
ABOUT = tiny Shakespeare
TRAIN_AR = config/train_shakespeare_char_ar.py --max_iters=500
TRAIN_DIFFUSION = config/train_shakespeare_char.py --max_iters=800
DISTILL = config/sdtt_shakespeare_char.py --rounds=3 --iters_per_round=60
EVALUATE = config/eval_shakespeare_char.py --steps=2,4,8
EVALUATE_ANCESTRAL = config/eval_pydoc_ancestral.py --steps=2,4,8,16,64
MAKE_NGRAM = distill.py config/kd_shakespeare_char.py --drafter=ngram --teacher=$(AR)/ckpt.pt
GAMMA = 4
PROMPT = --prompt='KING RICHARD'
endif

demo: .venv/ready data/$(DATASET)/meta.json
	@echo "Part 1 of 5: a GPT learns $(ABOUT)."
	$(PY) train.py $(TRAIN_AR) --dataset=$(DATASET) --out_dir=$(AR) \
	    $(if $(wildcard $(AR)/ckpt.pt),--init_from=resume)
	@echo "Part 2 of 5: the GPT becomes a masked diffusion model, which fills in all positions in parallel."
	$(PY) train.py $(TRAIN_DIFFUSION) --dataset=$(DATASET) --out_dir=$(DIFFUSION) \
	    --init_from=$(if $(wildcard $(DIFFUSION)/ckpt.pt),resume,$(AR)/ckpt.pt)
	@echo "Part 3 of 5: SDTT. In three rounds a student learns to do in one step what its teacher does in two."
	$(PY) distill.py $(DISTILL) --teacher=$(DIFFUSION)/ckpt.pt --out_dir=$(SDTT) \
	    $(if $(wildcard $(SDTT)/round_1.pt),--init_from=resume)
	@echo "Part 4 of 5: samples, side by side (a few seconds)."
	$(PY) sample.py --ckpt=$(AR)/ckpt.pt,$(DIFFUSION)/ckpt.pt --num_samples=1
	$(PY) sample.py --ckpt=$(DIFFUSION)/ckpt.pt,$(SDTT)/round_2.pt --num_samples=2 --steps=2
	@echo "Part 5 of 5: all of them are measured, at several steps and temperatures (minutes on a laptop)."
	test $(EVAL)/eval.txt -nt $(SDTT)/round_3.pt -a $(EVAL)/eval.txt -nt $(DIFFUSION)/ckpt.pt || ( \
	    $(PY) eval.py $(EVALUATE_ANCESTRAL) --ckpt=$(DIFFUSION)/ckpt.pt --evaluator=$(AR)/ckpt.pt --out=$(EVAL)/ancestral && \
	    $(PY) eval.py $(EVALUATE) --evaluator=$(AR)/ckpt.pt --out=$(EVAL) \
	    --ckpt=$(DIFFUSION)/ckpt.pt,$(SDTT)/round_2.pt,$(SDTT)/round_3.pt,$(AR)/ckpt.pt )
	$(PY) -m extras.loss_plot --runs=$(AR),$(DIFFUSION),$(SDTT) --out=$(EVAL)/loss.png
	@cat $(EVAL)/ancestral/eval.txt $(EVAL)/eval.txt
	test -e $(NGRAM)/ngram.txt || $(PY) $(MAKE_NGRAM) --out_dir=$(NGRAM)
	$(PY) -m extras.page --ckpt=$(AR)/ckpt.pt,$(DIFFUSION)/ckpt.pt,$(SDTT)/round_1.pt --draft=$(NGRAM)/ngram.txt --gamma=$(GAMMA) \
	    --steps=4 --temperature=0.9 --cooling=0.3 $(PROMPT) --frontier=$(EVAL)/eval.json --out=$(EVAL)/page.html

shakespeare:
	$(MAKE) demo DATASET=shakespeare_char

test: .venv/ready-to-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -n auto --dist worksteal

# model and samplers, SDTT and drafters, speculation, the loop (a student's folder lacks some)
STORY = $(wildcard $(addprefix tests/test_,model.py diffusion.py distill.py drafters.py speculative.py train.py))

quick: .venv/ready-to-test
	OMP_NUM_THREADS=1 $(PY) -m pytest $(or $(STORY),tests) -m "not slow" -q -n 2 --dist worksteal

grade: .venv/ready
	@$(PY) exercises/grade.py || true

data/$(DATASET)/meta.json: | .venv/ready
	$(PY) data/$(DATASET)/prepare.py

.venv/ready: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'nanoSDTT needs python 3.10 or newer')"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -r requirements.txt
	touch .venv/ready

.venv/ready-to-test: .venv/ready requirements-test.txt
	$(PY) -m pip install -r requirements-test.txt
	touch .venv/ready-to-test

.PHONY: demo shakespeare quick test grade
