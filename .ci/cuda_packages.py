"""Prints the packages of this workspace that have the feature `cuda`, one a line."""

import json
import subprocess

command = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
metadata = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
print("\n".join(package["name"] for package in metadata["packages"] if "cuda" in package["features"]))
