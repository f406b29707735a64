"""Peers for models of click-through rates, in PyTorch.

Which classes they are:

- FM: `DeepFM` of DeepCTR-Torch without a network, which is a factorization machine (dropout has no place in it).
- DeepFM: `DeepFM` of DeepCTR-Torch.
- DCN: `DCN` of DeepCTR-Torch with a matrix for each cross layer, which is DCN v2, beside a network; without a linear
  part, as published.
- DIN: `DIN` of DeepCTR-Torch; its attention with Dice and without a softmax, as published.
- DLRM: a module of this file, since DeepCTR-Torch has none, in the manner of Naumov et al. 2019 (arXiv 1906.00091): dot
  products of all pairs of the fields' vectors into a network, and its initial weights. There are no dense features and
  so no network at the bottom. One table holds all fields, which is faster than one for each.

All are trained by one loop rather than by DeepCTR-Torch's `fit`, which fetches examples one by one in Python, and by
PyTorch's fused Adam, which computes the same as the plain one.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

MODELS = ("FM", "DeepFM", "DCN", "DLRM", "DIN")
_EVALUATED = 16_384  # examples at once


def train(
    name: str,
    examples: dict[str, Any],
    *,
    width: int = 16,
    hidden: tuple[int, ...] = (64, 64),
    batch_size: int = 4096,
    epochs: int = 3,
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    dropout: float = 0.0,
    seed: int = 0,
    threads: int = 2,
    crosses: int = 2,
    attention: tuple[int, ...] = (64, 16),
    init_std: float | None = None,
    patience: int | None = None,
    batches: Callable[[int], Iterable[np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Trains a peer by Adam and tests the epoch that validates best.

    Args:
        name: One of `MODELS`.
        examples: As of `click_data.movielens_clicks`.
        width: Of the vectors.
        hidden: Layers of the network, but the last, of one number.
        l2: A batch costs its summed log loss and `l2` times the sum of squares of all vectors and first-order
            weights, as in DeepCTR-Torch; Adam sees both over the size of the batch.
        dropout: After each layer of `hidden`.
        threads: Of PyTorch.
        crosses: Cross layers of DCN.
        attention: Layers of DIN's attention, but the last.
        init_std: Standard deviation of the first vectors and, DIN's aside, of the first weights of the network, for
            DeepCTR-Torch's models; its 0.0001 if None. Of DLRM's vectors alone; as published if None.
        patience: Stops after so many epochs without a better validation; never if None.
        batches: The rows of each batch of an epoch, which is numbered from 0; if None in a random order of PyTorch's.

    Returns:
        "auc" and "log_loss" of the test part, "examples_per_second" of the median epoch (the first left out where
        there are more), "seconds" of all epochs together without validation, and "validation_auc" of each epoch.
    """
    others, _ = torch.get_num_threads(), torch.set_num_threads(threads)
    try:
        torch.manual_seed(seed)
        std = {} if init_std is None else {"init_std": init_std}
        model = _build(name, examples, width, hidden, l2, dropout, seed, crosses, attention, std)
        parts = {part: _inputs(name, examples[part]) for part in ("train", "validation", "test")}
        if batches is None:
            n, generator = len(parts["train"][1]), torch.Generator().manual_seed(seed)
            batches = functools.partial(_shuffled, n, batch_size, generator)
        return _train(model, parts, batches, epochs, learning_rate, patience)
    finally:
        torch.set_num_threads(others)


def first_weights(name: str, examples: dict[str, Any], seed: int, init_std: float | None) -> dict[str, np.ndarray]:
    """What `train` begins with by this seed, for all but DIN, by the names that ours have for it."""
    torch.manual_seed(seed)
    std = {} if init_std is None else {"init_std": init_std}
    model = _build(name, examples, 16, (64, 64), 0.0, 0.0, seed, 2, (64, 16), std)

    def vectors(of: nn.Module) -> torch.Tensor:
        return torch.cat([of.embedding_dict[field].weight for field in examples["names"]])

    if name in ("FM", "DeepFM"):
        found, linears = {"embedding.table": torch.cat([vectors(model), vectors(model.linear_model)], dim=1)}, []
        if name == "FM":
            found["bias"] = model.out.bias[0]
        else:
            linears = model.dnn.linears
            last = f"network.layers.{len(linears)}"
            found |= {f"{last}.kernel": model.dnn_linear.weight.T, f"{last}.bias": model.out.bias}
    elif name == "DLRM":
        found = {"embedding.table": model.table.weight}
        linears = [layer for layer in model.network if isinstance(layer, nn.Linear)]
    else:
        found = {
            "embedding.table": vectors(model),
            "crosses.kernel": model.crossnet.kernels.transpose(1, 2),
            "crosses.bias": model.crossnet.bias[..., 0],
            "end.kernel": model.dnn_linear.weight.T,
            "end.bias": model.out.bias,
        }
        linears = model.dnn.linears
    for number, layer in enumerate(linears):
        found |= {f"network.layers.{number}.kernel": layer.weight.T, f"network.layers.{number}.bias": layer.bias}
    return {place: weights.detach().numpy().copy() for place, weights in found.items()}


def epochs(
    name: str,
    examples: dict[str, Any],
    *,
    width: int = 16,
    hidden: tuple[int, ...] = (64, 64),
    batch_size: int = 4096,
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    threads: int = 2,
) -> Callable[[], None]:
    """A function that trains a peer for one more epoch at each call, to be timed; see `train`."""
    std: dict[str, float] = {}
    model = _build(name, examples, width, hidden, l2, 0.0, 0, 2, (64, 16), std)
    inputs, labels = _inputs(name, examples["train"])
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    generator = torch.Generator().manual_seed(0)

    def epoch() -> None:
        others, _ = torch.get_num_threads(), torch.set_num_threads(threads)
        try:
            _epoch(model, optimizer, inputs, labels, _shuffled(len(labels), batch_size, generator))
        finally:
            torch.set_num_threads(others)

    return epoch


def products(n: int, layers: list[tuple[int, int]], batch_size: int, threads: int) -> Callable[[], None]:
    """A function that computes what a step of n examples' batches cannot do without: three products for each layer.

    These are the results of the layer and its gradients in the rows and in the weights, by PyTorch's fastest routine.
    """
    arrays = [tuple(torch.randn(shape) for shape in ((batch_size, k), (k, m), (batch_size, m))) for k, m in layers]

    def epoch() -> None:
        others, _ = torch.get_num_threads(), torch.set_num_threads(threads)
        try:
            for _ in range(n // batch_size):
                for x, w, slope in arrays:
                    torch.mm(x, w)
                    torch.mm(slope, w.t())
                    torch.mm(x.t(), slope)
        finally:
            torch.set_num_threads(others)

    return epoch


def _train(
    model: nn.Module,
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]],
    batches: Callable[[int], Iterable[Any]],
    epochs: int,
    learning_rate: float,
    patience: int | None,
) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    seconds, validated, best = [], [], None
    for epoch in range(epochs):
        began = time.perf_counter()
        _epoch(model, optimizer, *parts["train"], batches(epoch))
        seconds.append(time.perf_counter() - began)
        validated.append(_scores(model, *parts["validation"])["auc"])
        if validated[-1] == max(validated):
            best, best_epoch = copy.deepcopy(model.state_dict()), epoch
        if patience is not None and epoch - best_epoch >= patience:
            break
    model.load_state_dict(best)
    return {
        **_scores(model, *parts["test"]),
        "examples_per_second": len(parts["train"][1]) / float(np.median(seconds[1:] or seconds)),
        "seconds": sum(seconds),
        "validation_auc": validated,
    }


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    batches: Iterable[Any],
) -> None:
    model.train()
    for rows in batches:
        rows = torch.as_tensor(rows, dtype=torch.int64)
        loss = nn.functional.binary_cross_entropy(model(inputs[rows]).squeeze(-1), labels[rows])
        penalty = model.get_regularization_loss() / len(rows)
        optimizer.zero_grad()
        (loss + penalty).sum().backward()
        optimizer.step()


def _shuffled(n: int, batch_size: int, generator: torch.Generator, epoch: int = 0) -> Iterable[torch.Tensor]:
    return torch.randperm(n, generator=generator).split(batch_size)


def _scores(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        chances = torch.cat([model(batch).squeeze(-1) for batch in inputs.split(_EVALUATED)]).double().numpy()
    truth = labels.numpy()
    return {
        "auc": float(roc_auc_score(truth, chances)),
        "log_loss": float(log_loss(truth, chances.clip(1e-7, 1 - 1e-7))),
    }


def _inputs(name: str, part: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model takes, and labels; DeepCTR-Torch takes ids as float32, all in one matrix."""
    labels = torch.from_numpy(part["labels"])
    if name == "DLRM":
        return torch.from_numpy(part["fields"]), labels
    columns = [part["fields"]]
    if name == "DIN":
        columns += _padded_right(part["history"])
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32)), labels


def _padded_right(history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histories that start in the first column, padded with 0, and how long each is."""
    length = (history >= 0).sum(axis=1, keepdims=True, dtype=np.int32)
    n = np.int32(history.shape[1])
    places = (np.arange(n, dtype=np.int32) - length) % n
    return np.maximum(np.take_along_axis(history, places, axis=1), 0), length


def _build(
    name: str,
    examples: dict[str, Any],
    width: int,
    hidden: tuple[int, ...],
    l2: float,
    dropout: float,
    seed: int,
    crosses: int,
    attention: tuple[int, ...],
    std: dict[str, float],
) -> nn.Module:
    if name == "DLRM":
        return DLRM(examples["sizes"], width, hidden, l2, dropout, **std)
    inputs, models = _deepctr()
    sizes = zip(examples["names"], examples["sizes"], strict=True)
    fields = [inputs.SparseFeat(field, size, embedding_dim=width) for field, size in sizes]
    shared = {"l2_reg_embedding": l2, "dnn_dropout": dropout, "seed": seed, **std}
    if name == "DIN":
        item = fields[examples["item_field"]]
        before = item._replace(name=f"hist_{item.name}")
        length = examples["train"]["history"].shape[1]
        fields.append(inputs.VarLenSparseFeat(before, maxlen=length, length_name="length"))
        return models.DIN(fields, [item.name], dnn_hidden_units=hidden, att_hidden_size=attention, **shared)
    if name == "DCN":
        cross = {"cross_num": crosses, "cross_parameterization": "matrix", "l2_reg_linear": 0.0, "l2_reg_cross": 0.0}
        return models.DCN([], fields, dnn_hidden_units=hidden, **cross, **shared)
    hidden = {"FM": (), "DeepFM": hidden}[name]
    return models.DeepFM(fields, fields, dnn_hidden_units=hidden, l2_reg_linear=l2, **shared)


def _deepctr() -> tuple[ModuleType, ModuleType]:
    """Inputs and models of DeepCTR-Torch, which is kept from asking the network for a newer version of itself."""
    silent = ModuleType("deepctr_torch.utils")
    silent.check_version = lambda version: None
    sys.modules.setdefault(silent.__name__, silent)
    from deepctr_torch import inputs, models

    return inputs, models


class DLRM(nn.Module):
    """Dot products of all pairs of the fields' vectors, into a network."""

    def __init__(
        self,
        sizes: list[int],
        width: int,
        hidden: tuple[int, ...],
        l2: float,
        dropout: float,
        init_std: float | None = None,
    ):
        super().__init__()
        self.l2 = l2
        self.table = nn.Embedding(sum(sizes), width)
        self.register_buffer("starts", torch.tensor([0, *sizes[:-1]]).cumsum(0).int())
        self.register_buffer("pairs", torch.tril_indices(len(sizes), len(sizes), offset=-1))
        for rows, size in zip(self.table.weight.data.split(list(sizes)), sizes, strict=True):
            if init_std is None:
                nn.init.uniform_(rows, -(size**-0.5), size**-0.5)
            else:
                nn.init.normal_(rows, std=init_std)
        widths, layers = (self.pairs.shape[1], *hidden, 1), []
        for n_in, n_out in itertools.pairwise(widths):
            linear = nn.Linear(n_in, n_out)
            nn.init.xavier_normal_(linear.weight)
            nn.init.normal_(linear.bias, std=n_out**-0.5)
            layers += [linear, nn.ReLU(), nn.Dropout(dropout)]
        self.network = nn.Sequential(*layers[:-2], nn.Sigmoid())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors = self.table(ids + self.starts)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return self.network(products[:, self.pairs[0], self.pairs[1]])

    def get_regularization_loss(self) -> torch.Tensor:
        return self.l2 * self.table.weight.square().sum() if self.l2 > 0 else torch.zeros(1)
