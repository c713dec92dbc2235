"""The libraries that are measured, one a file, by their names."""

from experiments.bench.peers.base import Peer
from experiments.bench.peers.flash import Flash, TunedFlash
from experiments.bench.peers.geomloss import GeomLoss
from experiments.bench.peers.ott import Ott
from experiments.bench.peers.pot import Pot
from experiments.bench.peers.sinkflow import Sinkflow

PEERS: dict[str, type[Peer]] = {
    "sinkflow": Sinkflow,
    "ott": Ott,
    "geomloss": GeomLoss,
    "flash": Flash,
    "flash-tuned": TunedFlash,
    "pot": Pot,
}
