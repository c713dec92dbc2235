# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. A table from its records
#
# Every number of the project's tables comes from a record: a JSON file with all scores, seeds, settings, the commit and the machine. Here the
# comparison of methods in the plane is read from its record, drawn, and checked against the table that is shown. The picture has the
# exact distance W2 to the target against the number of network evaluations; the dotted line is the floor, what another such set of real points scores.

# %%
import json
import pathlib

import numpy as np
from IPython.display import Markdown, display

import experiments
from sinkflow import plotting

# %matplotlib inline

results = pathlib.Path(experiments.__file__).parent / "results"
record = json.loads((results / "table-plane.json").read_text())
cells = {(cell["row"], cell["task"]): cell for cell in record["cells"]}
tasks, methods = record["config"]["tasks"], ("NSGF", "OT-CFM n=256", "FM", "RF-2")

fig, axes = plotting.figure(len(tasks), size=2.6)
for axis, task in zip(axes[0], tasks, strict=True):
    for method, marker in zip(methods, "os^d", strict=True):
        w2 = cells[method, task]["w2"]
        axis.plot(
            [int(nfe) for nfe in w2],
            [np.mean(w2[nfe]) for nfe in w2],
            f"{marker}-",
            ms=4,
            label=method,
        )
    axis.axhline(np.mean(cells["NSGF", task]["stratified_floor"]), color="0.5", ls=":")
    axis.set(xscale="log", yscale="log", title=task, xlabel="network evaluations")
    axis.tick_params(which="minor", labelleft=False)
axes[0, 0].set_ylabel("W2 [length]")
axes[0, -1].legend(fontsize="small")
display(fig)

# %% [markdown]
# ## Where the numbers come from

# %%
cell = cells["NSGF", "8gaussians"]
print("commit", cell["commit"][0], "on", cell["device"]["kind"])
print("seconds of all five seeds:", cell["seconds_of_all_seeds"])
print("certificates:", cell["certificates"])
settings = (
    "num_clouds",
    "num_particles",
    "epsilon",
    "flow_steps",
    "train_steps",
    "batch_size",
    "seeds",
    "num_samples",
)
print({name: record["config"][name] for name in settings})

# %% [markdown]
# ## The table
#
# Mean and standard deviation of five seeds.

# %%
columns = ("1", "2", "5", "10", "100")
lines = [
    "| 8gaussians | " + " | ".join(f"NFE {nfe}" for nfe in columns) + " |",
    "|---|" + "---|" * len(columns),
]
for method in methods:
    scores = [cells[method, "8gaussians"]["w2"][nfe] for nfe in columns]
    texts = [f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in scores]
    lines.append(f"| {method} | " + " | ".join(texts) + " |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Check yourself
#
# 1. Is every row above in the table that the driver wrote?

# %%
published = (results / "table-plane.md").read_text()
for line in lines[2:]:
    numbers = line.split("|")[2:-1]
    row = next(
        row for row in published.splitlines() if row.startswith(f"| {line.split('|')[1].strip()} |")
    )
    print(line.split("|")[1].strip(), all(number.strip() in row for number in numbers))

# %% [markdown]
# 2. With one evaluation, by how much is NSGF below OT-CFM with pairs from minibatches of 256?

# %%
for task in tasks:
    ours, rival = (np.mean(cells[method, task]["w2"]["1"]) for method in ("NSGF", "OT-CFM n=256"))
    print(f"{task}: {100 * (1 - ours / rival):.0f}%")

# %% [markdown]
# 3. Did any solve behind these numbers fail?

# %%
print(
    "unconverged solves of NSGF:",
    sum(cells["NSGF", task]["certificates"]["unconverged"] for task in tasks),
)
