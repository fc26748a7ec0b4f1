# Every target sets up what it needs in .venv; a second run starts at once. Choose the interpreter with PYTHON=python3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT := out/demo
SPACE := out/space
# Test processes, of one thread each.
WORKERS ?= 2

.PHONY: demo space test suites adapters tools ray slow release docs lint format clean

demo: $(READY)
	$(BIN)/python examples/ground_photo.py --save $(OUT)/grounded.png

# A Hugging Face Space, ready to upload: see examples/space/README.md.
space:
	rm -rf $(SPACE) && mkdir -p $(SPACE)
	cp -r examples/space/. src/glip_hf $(SPACE)
	find $(SPACE) -name __pycache__ -prune -exec rm -r {} +

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Transformers' own common suites, fetched with pip.
suites: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/transformers_suite/run.py -n $(WORKERS) --dist loadscope

# Libraries that wrap or replace linear layers, and one that takes detections; beside the environment, since Transformers
# imports some of them at start.
adapters: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --upgrade \
		--target out/adapters bitsandbytes ninja optimum-quanto peft torchao supervision trackers av \
		certifi charset-normalizer defusedxml idna opencv-python-headless pydeprecate requests rich scipy urllib3
	PYTHONPATH=out/adapters OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_adapters.py tests/training/test_tuning.py \
		tests/test_outputs.py tests/test_formats.py tests/test_video.py

# Libraries that want older packages than .venv has (Gradio: Pillow 12), in an environment with .venv's packages behind
# its own. The page of `glip demo` is tested in Debian's chromium (apt-get install chromium).
tools: $(READY)
	scripts/layer.sh $(BIN)/python out/tools
	grep -v '^pillow=' constraints.txt >out/tools/constraints.txt
	out/tools/bin/python -m pip install --quiet --disable-pip-version-check -c out/tools/constraints.txt gradio playwright
	out/tools/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		peft torchao supervision defusedxml opencv-python-headless pydeprecate requests scipy urllib3 charset-normalizer \
		openvino
	OMP_NUM_THREADS=1 out/tools/bin/python -m pytest -m '' tests/test_demo_page.py tests/test_tools.py \
		tests/test_export.py::test_three_graphs_in_openvino tests/test_export.py::test_deform_conv_nodes

# A Ray cluster on this machine.
ray: $(READY)
	scripts/layer.sh $(BIN)/python out/ray
	out/ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'ray[data]'
	OMP_NUM_THREADS=1 out/ray/bin/python -m pytest tests/test_ray.py

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile

# Wheel and sdist, built, checked, installed into an empty environment and type-checked.
release:
	PYTHON=$(PYTHON) bash scripts/release_check.sh

# The documentation site. NO_MKDOCS_2_WARNING: an advertisement of its successor.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and alone: its exact version may lie on disk as a CPU build, a range would fetch a larger one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache
