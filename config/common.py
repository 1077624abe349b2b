"""
The knobs that every script has: python SCRIPT.py --help shows them beside its own. A script may give other values.
"""

dataset = ""  # a name under data/, or a folder that a prepare.py wrote; '': what the checkpoint was trained on
batch_size = 16  # sequences per forward, on each process, at least 1
seed = 1337
device = (
    ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | a certain one, such as 'cuda:1'
)
dtype = ""  # '' (bfloat16 where the hardware multiplies it) | 'float32' | 'bfloat16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
