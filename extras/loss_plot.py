"""
The loss of several runs against steps, in training and in validation, from their log.jsonl.
$ python -m extras.loss_plot --runs=out/pydoc_ar,out/pydoc,out/sdtt_pydoc --out=out/loss.png
"""

import os

from configurator import configure
from plumbing.checkpoints import paths_of
from plumbing.report import pyplot, save_plot
from plumbing.runs import read_log

# --------------------------------------------------------------------------------------------------
runs = "out/pydoc_ar,out/pydoc"  # the folders of runs (a,b or out/seed*/ar)
out = "out/loss.png"  # the picture
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


def plot_losses(logs, plt):
    """{run: the objects of its log.jsonl} -> a figure: a line and a dashed one for each run."""
    fig, ax = plt.subplots(figsize=(7, 4.2))
    for i, (run, records) in enumerate(logs.items()):
        for key, style in (("loss", "-"), ("val_loss", "o--")):
            found = [r for r in records if key in r]
            steps = [r["step"] for r in found]
            ax.plot(steps, [r[key] for r in found], style, color=f"C{i}", label=f"{run}, {key}")
    ax.set(xlabel="steps", ylabel="loss")
    ax.legend()
    return fig


def main(cfg):
    folders = [os.path.normpath(path) for path in paths_of(cfg.runs)]
    logs = {folder: read_log(folder) for folder in folders}
    save_plot(plot_losses(logs, pyplot()), cfg.out)
    print(f"Saved in {cfg.out}")


if __name__ == "__main__":
    main(cfg)
