"""affinax inside a larger JAX stack: a mesh that shares a network, factors as frozen embeddings, ALS as a layer.

Run it as `python examples/stacks.py`; on a machine of one CPU it makes eight devices of it.
"""

from __future__ import annotations

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import affinax as afx  # noqa: E402
from affinax import models  # noqa: E402
from affinax.engine.factorization import fit, implicit_als  # noqa: E402
from affinax.engine.retrieval import fold_in  # noqa: E402
from affinax.engine.training import gradient_step, losses, start_training  # noqa: E402


def shared_by_a_mesh(steps: int = 20) -> list[float]:
    """DeepFM on eight devices: four parts of each batch, and tables in two parts; the losses of each step."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sizes, rng = [1000, 500, 7], np.random.default_rng(0)
    fields = np.stack([rng.integers(0, size, 4096) for size in sizes], axis=1).astype(np.int32)
    labels = (fields[:, 2] > 3).astype(np.float32)
    batch = jax.device_put({"fields": fields, "labels": labels}, NamedSharding(mesh, P("data")))

    model, optimizer = models.DeepFM(sizes, implementation="reference", rngs=nnx.Rngs(0)), optax.adam(0.01)
    step = gradient_step(lambda m, b, key: losses.binary_cross_entropy(m(b["fields"]), b["labels"]), optimizer)
    state = start_training(model, optimizer)
    places = models.shardings(state, mesh)  # by name: tables by rows, all else everywhere
    state = jax.device_put(state, places)
    step = jax.jit(step, donate_argnums=1, out_shardings=(places, None))
    found = []
    for key in jax.random.split(jax.random.key(0), steps):
        state, info = step(key, state, batch)
        found.append(float(info.loss))
    print("the table lies as", state.parameters.embedding.table[...].sharding.spec)
    return found


def frozen_factors(steps: int = 100) -> list[float]:
    """Items as ALS has them, which stay; users are a projection of what they met, which is trained."""
    films = afx.datasets.movielens("100k")
    factors, _ = fit(implicit_als(rank=16), films, key=jax.random.key(0), steps=8)
    towers = models.TwoTower([], [films.n_items], width=16, item_table=factors.items, rngs=nnx.Rngs(0))

    def kinds(network):
        def kind(path, _):
            return "frozen" if "items" in jax.tree_util.keystr(path) else "trained"

        return jax.tree_util.tree_map_with_path(kind, network)

    optimizer = optax.partition({"frozen": optax.set_to_zero(), "trained": optax.adam(0.01)}, kinds)
    by_user = films.to_device().by_user

    def loss(model, batch, key):
        users, items = batch
        met = model.user(None, by_user)[users]  # histories of any length, as they lie
        return losses.in_batch_softmax(met, model.item(items[:, None]), item_ids=items)

    step, state = jax.jit(gradient_step(loss, optimizer)), start_training(towers, optimizer)
    rng, found = np.random.default_rng(0), []
    for key in jax.random.split(jax.random.key(1), steps):
        rows = rng.integers(0, films.nnz, 512)
        state, info = step(key, state, (films.users[rows], films.items[rows]))
        found.append(float(info.loss))
    assert (state.parameters.items.table[...][: films.n_items] == factors.items).all()
    return found


def als_as_a_layer(steps: int = 100) -> list[float]:
    """A head that tells women from men by the vectors their histories fold into, and items that move to help it."""
    films = afx.datasets.movielens("100k")
    factors, _ = fit(implicit_als(rank=8), films, key=jax.random.key(0), steps=8)
    histories, optimizer = films.to_device().by_user, optax.adam(0.01)
    labels = jnp.asarray((films.user_features["gender"] == "F").to_numpy(), jnp.float32)

    def loss(parameters, batch, key):
        items, head, bias = parameters
        vectors = fold_in(factors._replace(items=items), histories)  # one exact solve, differentiated through
        return losses.binary_cross_entropy(vectors @ head + bias, labels)

    step = jax.jit(gradient_step(loss, optimizer))
    state, found = start_training((factors.items, jnp.zeros(8), jnp.zeros(())), optimizer), []
    for key in jax.random.split(jax.random.key(1), steps):
        state, info = step(key, state, ())
        found.append(float(info.loss))
    return found


if __name__ == "__main__":
    for example in (shared_by_a_mesh, frozen_factors, als_as_a_layer):
        costs = example()
        print(f"{example.__name__}: loss {costs[0]:.4f} -> {costs[-1]:.4f}")
