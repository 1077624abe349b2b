"""
The paper's ablations at class size: 3 rounds of 150 steps on the demo's model, 2 to 5 minutes on 2
cores.

$ python distill.py config/sdtt_ablation.py --divergence=tvd --seed=1 --out_dir=out/ablation/tvd-1
"""

from config.sdtt_pydoc import *

out_dir = "out/ablation/base-1"
seed = 1
iters_per_round = 150
eval_interval = 150
