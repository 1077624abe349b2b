# make demo    from an empty machine to generated text: trains a GPT, turns it into a diffusion model, distills, evaluates
# make test    sets up and runs every test, offline
# Both may be run again: they skip what is done and continue what was interrupted. Needs python 3.10 or newer.

PYTHON ?= python3
PY = .venv/bin/python
AR = out/pydoc_ar/ckpt.pt
DIFFUSION = out/pydoc/ckpt.pt
STUDENT = out/sdtt_pydoc/round_3.pt

demo: .venv/ready data/pydoc/meta.json
	$(PY) train.py config/train_pydoc_ar.py $(if $(wildcard $(AR)),--init_from=resume)
	$(PY) train.py config/train_pydoc.py $(if $(wildcard $(DIFFUSION)),--init_from=resume)
	$(PY) distill.py config/sdtt_pydoc.py $(if $(wildcard out/sdtt_pydoc/round_1.pt),--init_from=resume)
	$(PY) sample.py --ckpt=$(AR),$(DIFFUSION) --num_samples=1 --steps=128
	$(PY) sample.py --ckpt=$(DIFFUSION),$(STUDENT) --num_samples=2 --steps=8
	test out/demo/eval.txt -nt $(STUDENT) -a out/demo/eval.txt -nt $(DIFFUSION) || $(PY) eval.py config/eval_pydoc.py
	@cat out/demo/eval.txt

test: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m pytest tests

data/pydoc/meta.json: .venv/ready
	$(PY) data/pydoc/prepare.py

.venv/ready: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'nanoSDTT needs python 3.10 or newer')"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -r requirements.txt
	touch .venv/ready

.PHONY: demo test
