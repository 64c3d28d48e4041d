# The few verbs. `make book` and `make test` set up everything they need; nothing but Python 3.11+ has to be there.

PROFILE ?= quick
MODEL   ?= brain
PYTHON  ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
CORES   := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# Files of tests side by side: a process a core, four at most, for each loads torch.
WORKERS := $(shell [ $(CORES) -gt 4 ] && echo 4 || echo $(CORES))
# Half of the cores, eight at most: two threads on two virtual cores are slower than one.
export OMP_NUM_THREADS ?= $(shell n=$$(( $(CORES) / 2 )); [ $$n -lt 1 ] && n=1; [ $$n -gt 8 ] && n=8; echo $$n)
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export TOKENIZERS_PARALLELISM = false
export PYTHONUNBUFFERED = 1

RUN   := .venv/bin/python
STAMP := .venv/.installed
SAY    = @printf '%s  %s\n' "$$(date +%H:%M:%S)"

.PHONY: help book html run test base bench smoke report doctor colab lock clean

help:             ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

book: $(STAMP)    ## run the notebooks (PROFILE=quick) and build the book
	$(SAY) "notebooks, profile $(PROFILE)"
	@$(RUN) -m studies run --profile $(PROFILE)
	@$(MAKE) --no-print-directory html

html: $(STAMP)    ## build the book from the notebooks already run
	$(SAY) "book, profile $(PROFILE)"
	@$(RUN) -m studies html --profile $(PROFILE)
	$(SAY) "open _build/html/index.html"

run: $(STAMP)     ## run the notebooks only
	@$(RUN) -m studies run --profile $(PROFILE)

test: $(STAMP)    ## all tests
	$(SAY) "tests"
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

smoke:            ## the whole book, quickly and badly
	@$(MAKE) --no-print-directory book PROFILE=smoke

base: $(STAMP)    ## train base weights (MODEL=brain, heart, fundus, ...; minutes on a GPU, hours without)
	@$(RUN) -m studies base $(MODEL)

bench: $(STAMP)   ## what measures speed and memory
	@for file in benchmarks/*.py; do echo "$$file"; $(RUN) "$$file" || exit 1; done

report: $(STAMP)  ## figures, intervals and criteria of every study
	@$(RUN) -m studies report

doctor: $(STAMP)  ## versions, device, weights: what a bug report needs
	@$(RUN) -m fairlib.cli doctor

colab:            ## run the notebooks (profile smoke) with the versions that Google Colab ships; needs uv
	@.ci/colab

lock:             ## pin pyproject.toml anew into requirements.lock
	@head -2 requirements.lock > .lock.head
	@uv pip compile pyproject.toml --extra figures --extra models --extra notebooks --extra book --extra test --universal --python-version 3.11 --upgrade --no-emit-index-url \
		--no-header --no-annotate --quiet --output-file .lock.body
	@cat .lock.head .lock.body > requirements.lock && rm .lock.head .lock.body

clean:            ## delete what was built; keep the environment
	rm -rf _build runs

# uv when it can be had, since it installs in one minute what takes pip many; pip where uv finds no index.
$(STAMP): requirements.lock pyproject.toml
	$(SAY) "environment (once): a few minutes, and 6 GB on Linux"
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name it: make PYTHON=/path/to/python"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv .venv 2>/dev/null || uv venv --quiet --seed --python $(PYTHON) .venv \
		|| { echo "$(PYTHON) cannot make an environment; install its venv package (Debian: python3-venv)"; exit 1; }
	@UV="$$(command -v uv || true)"; \
	if [ -z "$$UV" ]; then $(RUN) -m pip install --quiet uv >/dev/null 2>&1 && UV=.venv/bin/uv; fi; \
	if [ -n "$$UV" ] && "$$UV" pip install --quiet --python $(RUN) -r requirements.lock; then \
		"$$UV" pip install --quiet --python $(RUN) --no-deps --no-build-isolation -e .; \
	else \
		$(RUN) -m ensurepip --upgrade >/dev/null 2>&1; \
		$(RUN) -m pip install -r requirements.lock && $(RUN) -m pip install --no-deps --no-build-isolation -e .; \
	fi
	@$(RUN) -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_paths()['purelib'], 'studies.pth').write_text(str(pathlib.Path.cwd()))"
	@touch $@
	$(SAY) "environment is there"
