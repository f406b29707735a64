"""flax nnx networks: each is its own pytree of parameters, and forwards one example or any batch of them."""

from .dcn import DCN
from .din import DIN
from .dlrm import DLRM
from .factorization_machine import DeepFM, FactorizationMachine
from .fusion import FusionTransformer
from .hstu import HSTU
from .layer_inputs import inputs_of_layers
from .maps import attention_maps, attention_rollout
from .mlp import MLP, NeuMF
from .recommenders import pair_ranker, tower_retriever
from .sequence_training import sequence_retriever
from .sequential import BERT4Rec, SASRec
from .sharding import partition_specs, shardings
from .shrinking import share_blocks, shrink
from .trained import PairNetwork, SequenceNetwork, TowerNetwork
from .two_tower import TwoTower

__all__ = [
    "DCN",
    "DIN",
    "DLRM",
    "HSTU",
    "MLP",
    "BERT4Rec",
    "DeepFM",
    "FactorizationMachine",
    "FusionTransformer",
    "NeuMF",
    "PairNetwork",
    "SASRec",
    "SequenceNetwork",
    "TowerNetwork",
    "TwoTower",
    "attention_maps",
    "attention_rollout",
    "inputs_of_layers",
    "pair_ranker",
    "partition_specs",
    "sequence_retriever",
    "shardings",
    "share_blocks",
    "shrink",
    "tower_retriever",
]
