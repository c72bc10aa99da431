"""Packaging of Quovadis; also what Beam's ``--setup_file`` builds on Dataflow workers."""

import re
from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="quovadis",
    version=re.search(r'__version__ = "(.+)"', Path("pipeline/__init__.py").read_text("utf-8"))[1],
    description="From the Kinetics lists to a trained two-stream I3D",
    long_description=Path("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pipeline*", "trainer*"]),
    package_data={
        "pipeline": ["py.typed", "report/page.*"],
        "trainer": ["py.typed", "configurations/*.toml", "networks/table.json", "weights/*.txt"],
    },
    # Lower bounds only, for those who install beside their own packages; constraints.txt has one exact
    # version of everything, and is what the README's commands, the containers and CI install from.
    install_requires=[
        "apache-beam>=2.77",
        "argcomplete>=3.6",
        "av>=18.0",
        "deno>=2.3",  # the JavaScript runtime that yt-dlp needs for YouTube
        "ffmpeg-python>=0.2",
        "fsspec>=2026.9",
        "google-crc32c>=1.9",
        "imageio-ffmpeg==0.8.1",  # pinned: its binary is the reference encoder, another makes other bytes
        "jinja2>=3.1",
        "numba>=0.68",
        "numpy>=2.2",
        "opencv-contrib-python-headless>=5.0",  # headless: the plain one needs libGL and X11
        "pyarrow>=25.0",
        "tqdm>=4.67",
        "webdataset>=1.0",
        "yt-dlp>=2026.10",
        "yt-dlp-ejs>=0.8",
    ],
    extras_require={
        "train": ["torch>=2.13", "tensorboard>=2.21"],
        "gcp": ["apache-beam[gcp]>=2.77", "gcsfs>=2026.9"],
        "s3": ["s3fs>=2026.9"],
        "spark": ["pyspark>=3.5,<3.6"],  # Beam 2.77 has runners for Spark 3 only
        "onnx": ["onnx>=1.23", "onnxruntime>=1.31", "onnxscript>=0.7"],
        "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0.8"],
        "dev": [
            "flask>=3.1",
            "flask-cors>=6.0",
            "hypothesis>=6.170",
            "matplotlib>=3.11",
            "moto[s3]>=5.2",  # the S3 server of the tests, with flask
            "mypy>=2.4",
            "pre-commit>=4.0",
            "pytest>=9.2",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "pyyaml>=6.0",
            "ruff>=0.17",
            "s3fs>=2026.9",
            "torchvision>=0.28",
            "types-tqdm>=4.67",
            "uv>=0.9",  # make constraints
        ],
    },
    entry_points={
        "console_scripts": [
            "quovadis=trainer.quovadis:main",
        ],
    },
)
