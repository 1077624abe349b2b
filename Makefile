# make demo    from an empty machine to generated text: trains a GPT, turns it into a diffusion model, distills, evaluates
# make test    sets up and runs every test, offline
# Both may be run again: they skip what is done and continue what was interrupted. Needs python 3.10 or newer.

PYTHON ?= python3
PY = .venv/bin/python
AR = out/pydoc_ar/ckpt.pt
DIFFUSION = out/pydoc/ckpt.pt
STUDENT = out/sdtt_pydoc/round_2.pt

demo: .venv/ready data/pydoc/meta.json
	@echo "Part 1 of 5: a GPT learns Python's language reference."
	$(PY) train.py config/train_pydoc_ar.py $(if $(wildcard $(AR)),--init_from=resume)
	@echo "Part 2 of 5: the GPT becomes a masked diffusion model, which writes anywhere on the page."
	$(PY) train.py config/train_pydoc.py $(if $(wildcard $(DIFFUSION)),--init_from=resume)
	@echo "Part 3 of 5: SDTT. In three rounds a student learns to do in one step what its teacher does in two."
	$(PY) distill.py config/sdtt_pydoc.py $(if $(wildcard out/sdtt_pydoc/round_1.pt),--init_from=resume)
	@echo "Part 4 of 5: samples, side by side (a few seconds)."
	$(PY) sample.py --ckpt=$(AR),$(DIFFUSION) --num_samples=1
	$(PY) sample.py --ckpt=$(DIFFUSION),$(STUDENT) --num_samples=2 --steps=2
	@echo "Part 5 of 5: all of them are measured, in 1, 2 and 4 steps, at six temperatures (two minutes on a laptop)."
	test out/demo/eval.txt -nt out/sdtt_pydoc/round_3.pt -a out/demo/eval.txt -nt $(DIFFUSION) || ( \
	    $(PY) eval.py config/eval_pydoc_ancestral.py && $(PY) eval.py config/eval_pydoc.py )
	@cat out/demo/ancestral/eval.txt out/demo/eval.txt

test: .venv/ready-to-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -n auto --dist worksteal

data/pydoc/meta.json: .venv/ready
	$(PY) data/pydoc/prepare.py

.venv/ready: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'nanoSDTT needs python 3.10 or newer')"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -r requirements.txt
	touch .venv/ready

.venv/ready-to-test: .venv/ready requirements-test.txt
	$(PY) -m pip install -r requirements-test.txt
	touch .venv/ready-to-test

.PHONY: demo test
