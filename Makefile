# Two commands set a fresh machine up: `make demo` and `make test`. They need Python 3.11 or later, and make.
# PIP_ARGS is passed to pip, for PyTorch's CPU wheels or a mirror: make demo PIP_ARGS="--index-url …"

PYTHON ?= python3
PIP_ARGS ?=
TEST_WORKERS ?= 2
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
# Idle OpenMP threads that spin take the cores away from threads that compute; on a shared machine that costs up to 10x.
export OMP_WAIT_POLICY ?= PASSIVE

MINI := runs/zhizhi-mini
.PHONY: demo install test soak check bench model reader clean

demo: .venv/.runtime  ## an index over the sample corpus, four questions, then the page on 127.0.0.1:8000
	$(BIN)/python scripts/build_index.py --input examples/peps.jsonl.xz --index demo/peps
	$(BIN)/python scripts/ask.py --index demo/peps \
		"What is the End Of Life date for Python 2.7?" \
		"What did the operator of PEP 572 become informally known as?" \
		"Which coding conventions does the style guide give?" \
		"Who wrote War and Peace?"
	$(BIN)/python scripts/run_server.py --index demo/peps

install: .venv/.dev  ## everything that tests and benchmarks need

test: .venv/.dev check  ## everything of check, and every test, in two processes with one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

soak: .venv/.dev  ## longer variants of tests, such as hundreds of kills
	$(BIN)/python -m pytest -m slow

check: .venv/.dev  ## lint, types, import rules and private words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: .venv/.dev  ## retrieval quality beside BM25 and MiniLM: make bench DATA="path/to/scifact …"
	$(BIN)/python scripts/eval.py retrieval --data $(DATA)

# Scores on development data, which decide; the test splits are for the end
define development
	$(BIN)/python scripts/eval.py retrieval --data $(DATA)/beir/nfcorpus $(DATA)/beir/cmrc2018 --split dev --embedder $(MINI)/$(1) --rows dense
	$(BIN)/python scripts/eval.py retrieval --data $(DATA)/beir/scifact --split train --embedder $(MINI)/$(1) --rows dense
	$(BIN)/python scripts/eval.py sts --data $(wildcard $(DATA)/sts/*_dev.*) --embedder $(MINI)/$(1) --rows dense
endef

model: $(MINI)/tokenizer/tokenizer.json  ## a small embedder, on two cores; resumes: make model DATA=path/to/data
	$(BIN)/python scripts/fetch_model.py multilingual-e5-small
	$(BIN)/python scripts/train_embedder.py --config configs/embedder_mini_table.yaml
	$(call development,table)
	$(BIN)/python scripts/train_embedder.py --config configs/embedder_mini.yaml
	$(call development,network)

reader: $(MINI)/fit_answers.jsonl  ## a reader of answers, on two cores; resumes: make reader DATA=path/to/data
	$(BIN)/python scripts/fetch_model.py smollm2-135m-instruct
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 scripts/finetune.py --config configs/task-reader.yaml \
		--data $(DATA)/qa/squad_train-v1.1.json.gz --exclude $(MINI)/fit_answers.jsonl
	$(BIN)/python scripts/export.py runs/zhizhi-reader/lora --model runs/zhizhi-reader/span --to lora

$(MINI)/fit_answers.jsonl: | .venv/.dev
	mkdir -p $(MINI)
	$(BIN)/python scripts/fit_answers.py --documents_only --data $(DATA)/qa/squad_train-v1.1.json.gz --out $@

$(MINI)/pairs/summary.json: $(MINI)/fit_answers.jsonl
	$(BIN)/python scripts/prepare_pairs.py --out $(MINI)/pairs \
		--exclude $(MINI)/fit_answers.jsonl $(wildcard $(DATA)/beir/* $(DATA)/sts/*_dev.* $(DATA)/sts/*_test.*) --input \
		$(filter-out %/nli.jsonl.gz, $(wildcard $(DATA)/pairs/*.jsonl*)) \
		$(wildcard $(foreach name,wikipedia_2015_core_0 wikipedia_2015_core_1 wikinews openstax oi_wiki_zh javaguide_zh,$(DATA)/text/$(name).jsonl*))

$(MINI)/tokenizer/tokenizer.json: $(MINI)/pairs/summary.json
	$(BIN)/python scripts/train_tokenizer.py --input $(MINI)/pairs/texts.jsonl --vocab_size 34000 --n_phrases 6000 --uncased --out $(MINI)/tokenizer

clean:  ## remove what make made; the model cache stays
	rm -rf .venv demo build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zhizhi needs Python 3.11 or later, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/.runtime: .venv/bin/python pyproject.toml setup.py constraints.txt
	$(PIP_INSTALL) -e '.[documents]'
	@touch $@

.venv/.dev: .venv/.runtime
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@
