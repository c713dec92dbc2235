"""NSGF++ on MNIST or Fashion-MNIST, and its rivals: flow matching and OT-CFM.

Command:  python -m experiments.mnist [--dataset fashion] [--method fm|ot-cfm]
Runtime:  eight minutes on an H200, three of them training; --smoke ends in under 90 seconds on two
          CPU cores.
Expected: samples/, scores/ and pictures/ for each number of evaluations, and result.json. Fréchet
          distances at 10 and 60 evaluations: MNIST, NSGF++ 4.8 and 3.2, OT-CFM 7.5 and 3.9;
          Fashion-MNIST, NSGF++ 2.1 and 1.4, OT-CFM 3.0 and 1.8.
Source:   arXiv:2401.14069, the MNIST experiment; rivals arXiv:2210.02747 and arXiv:2302.00482.
"""

from experiments.harness import cli
from experiments.images.config import MnistConfig as Config
from experiments.images.pipeline import main

if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
