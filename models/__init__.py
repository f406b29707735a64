"""flax nnx networks: each is its own pytree of parameters, and forwards one example or any batch of them."""

from .dcn import DCN
from .din import DIN
from .dlrm import DLRM
from .factorization_machine import DeepFM, FactorizationMachine
from .mlp import MLP, NeuMF
from .recommenders import pair_ranker, tower_retriever
from .sharding import partition_specs, shardings
from .trained import PairNetwork, TowerNetwork
from .two_tower import TwoTower

__all__ = [
    "DCN",
    "DIN",
    "DLRM",
    "MLP",
    "DeepFM",
    "FactorizationMachine",
    "NeuMF",
    "PairNetwork",
    "TowerNetwork",
    "TwoTower",
    "pair_ranker",
    "partition_specs",
    "shardings",
    "tower_retriever",
]
