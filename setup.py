"""What pyproject.toml cannot say: packages are found, and two folders are installed under other names.

`scripts/` is the package `zhizhi`, whose modules are the commands; `configs/` is `zhizhi.configs`, the presets.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["benchmarks*", "embed*", "gpt_core*", "index*", "serve*"]),
        "zhizhi",
        "zhizhi.configs",
    ],
    package_dir={"zhizhi": "scripts", "zhizhi.configs": "configs"},
)
