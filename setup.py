from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent

setup(
    name="lossmix-det",
    version="0.1.0",
    description="LossMix and domain adaptation for object detection: mix images, interpolate the losses",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["lossmix_det", "lossmix_det.*"]),
    package_data={"lossmix_det": ["py.typed"]},
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
        "supervision": ["supervision>=0.25"],  # Instances.to_supervision
        "test": [
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-cov>=5",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            # What scores are held against.
            "mean-average-precision>=2024.1",
            "pycocotools>=2.0.7",
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
