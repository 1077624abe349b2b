"""
Why torch does not use an NVIDIA GPU that is there, and the command that changes it.
"""

import functools
import glob
import os
import re
import shutil
import subprocess

import torch

from configurator import first_line

WHEELS = "https://download.pytorch.org/whl/"
# a build of torch for a major version of CUDA -> the oldest driver that it runs with
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


def install_line(cuda):
    """'cu126', 'cu130' -> the command that replaces torch by the same version, built for that."""
    version = torch.__version__.split("+")[0]
    # +cuXXX names the build: without it pip keeps the installed torch of the same version
    return f"pip install torch=={version}+{cuda} --index-url {WHEELS}{cuda}"


def is_hidden():
    """Whether CUDA_VISIBLE_DEVICES hides all GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")  # Slurm says that


def driver_version():
    """-> '570.86.10', or 'unknown'; '' where the system shows no NVIDIA GPU."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.split()[0]
        if "no devices" in said.stdout.lower():
            return ""
    # A container may have the device without the program. It sees its host's driver in any case.
    if not glob.glob("/dev/nvidia[0-9]*"):
        return ""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as f:
            found = re.search(r"\s(\d+\.[\d.]+)\s", f.read())
            return found[1] if found else "unknown"
    except OSError:
        return "unknown"


@functools.lru_cache  # asked once in a run
def why_unused():
    """-> a sentence, '' where torch uses the NVIDIA GPU or there is none."""
    if is_hidden():
        return ""
    if torch.cuda.is_available():
        return why_too_old_a_gpu()
    driver = driver_version()
    if not driver:
        return ""
    major = int(driver.split(".")[0]) if driver[0].isdigit() else 0
    if not torch.version.cuda:
        cuda = "cu126" if 0 < major < OLDEST_DRIVER[13] else "cu130"
        update = ""
        if 0 < major < OLDEST_DRIVER[12]:
            update = f", with driver {OLDEST_DRIVER[12]} or newer"
        return (
            f"An NVIDIA GPU is here (driver {driver}), but torch {torch.__version__} is built for "
            f"CPUs only. For the GPU{update}: {install_line(cuda)}"
        )
    needed = OLDEST_DRIVER.get(int(torch.version.cuda.split(".")[0]), 0)
    if 0 < major < needed:
        older = ""
        if OLDEST_DRIVER[12] <= major:
            older = f", or take the build for older ones: {install_line('cu126')}"
        return (
            f"An NVIDIA GPU is here, but its driver {driver} is too old for torch "
            f"{torch.__version__}, built for CUDA {torch.version.cuda}: install driver {needed} or "
            f"newer{older}"
        )
    return f"An NVIDIA GPU is here (driver {driver}), but CUDA does not start: {what_cuda_says()}"


def what_cuda_says():
    try:
        torch.cuda.init()
    except Exception as error:  # whatever it is, it is the reason
        return first_line(error)
    return "torch.cuda.is_available() is False, and it does not say why"


def why_too_old_a_gpu():
    """-> a sentence where this torch has no code for the first GPU, which is older; else ''."""
    built_for = re.findall(r"sm_(\d+)", " ".join(torch.cuda.get_arch_list()))
    if not torch.version.cuda or not built_for:  # another kind of GPU
        return ""
    major, minor = torch.cuda.get_device_capability()
    oldest = min(map(int, built_for))
    if 10 * major + minor >= oldest:
        return ""
    name = torch.cuda.get_device_name()
    older = ""
    if not torch.version.cuda.startswith("12."):
        older = f" For older ones: {install_line('cu126')}"
    return (
        f"The GPU, {name} (sm_{major}{minor}), is too old for torch {torch.__version__}, which "
        f"is built for sm_{oldest} and newer.{older}"
    )
