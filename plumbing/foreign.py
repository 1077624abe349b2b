"""
Files of other programs: what they are, told by their names and by a look into them. Nothing in them
is loaded, for to load a pickle is to run it.
"""

import contextlib
import itertools
import os
import pickletools
import zipfile

# what the sentences below have in common
SAFE = "a folder with its weights as model.safetensors and their config.json"


def strings_and_classes(path):
    """
    -> the texts in a pickle, or in that of a torch.save, and the classes ("module name") that it
    would make; as far as it is whole.
    """
    texts = []
    classes = []
    damage = (OSError, ValueError, LookupError, zipfile.BadZipFile)
    with contextlib.suppress(*damage), contextlib.ExitStack() as stack:
        f = stack.enter_context(open(path, "rb"))
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(f))
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            f = stack.enter_context(archive.open(name))
        for _ in range(4):  # an old torch.save has three more before it
            for opcode, value, _ in itertools.islice(pickletools.genops(f), 100_000):
                if opcode.name == "GLOBAL":
                    classes.append(value)
                elif opcode.name == "STACK_GLOBAL":
                    classes.append(" ".join(texts[-2:]))
                elif isinstance(value, str):
                    texts.append(value)
    return texts, classes


def what_is(path):
    """-> what a file that is no checkpoint of ours is, and what helps; '' if that is not known."""
    folder, name = os.path.split(path)
    if name.endswith(".safetensors"):
        return f"weights alone. Give the folder, which has their config.json: {folder or '.'}"
    if name.endswith(".bin") and os.path.exists(os.path.join(folder, "val.bin")):
        return f"the text of a dataset, as token ids: --dataset={folder or '.'}"
    if name in ("ngram.txt", "ngram.npz"):
        return f"an n-gram, which drafts for a GPT: --draft={path}"

    texts, classes = strings_and_classes(path)
    if {"model_args", "iter_num"} <= set(texts):
        config = "config/train_shakespeare_char_nanogpt_cpu.py"
        return f"a checkpoint of nanoGPT, whose models train here with: python train.py {config}"
    if {"itos", "stoi"} <= set(texts):
        return (
            "a vocabulary of nanoGPT, a pickle, and none is loaded here. Make one of its text: "
            "python data/text/prepare.py --input=FILE --tokenizer=char"
        )
    if "pytorch-lightning_version" in texts:
        return (
            f"a checkpoint of Lightning. Give {SAFE}; MDLM's and SDTT's are published so: "
            "--ckpt=mdlm-owt, --ckpt=sdtt:kld:7"
        )
    known = ("torch ", "torch._", "torch.storage", "collections ", "numpy", "_codecs")
    strange = [text.replace(" ", ".") for text in classes if not text.startswith(known)]
    if strange:
        return f"a pickle of {strange[0]}, and none is loaded here. Give {SAFE}"
    if any(text.endswith(".weight") for text in texts):
        return f"weights alone. Give {SAFE}, or any model of transformers as hf:FOLDER"
    return ""
