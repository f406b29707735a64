"""The networks that go by name; flax is imported where one of them is used, since it takes its time."""

from __future__ import annotations

import inspect
from typing import Any


class PairRanker:
    """`models.pair_ranker` of one network: called with settings of both, it returns the `Algorithm`.

    >>> sorted(inspect.signature(PairRanker("DeepFM")).parameters)[:4]
    ['batch_size', 'columns', 'dropout', 'hidden']
    """

    def __init__(self, network: str):
        self._network = network

    def __call__(self, **settings: Any) -> Any:
        from . import models

        return models.pair_ranker(getattr(models, self._network), **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        from . import models

        own = dict(inspect.signature(models.pair_ranker).parameters)
        del own["network"], own["settings"]
        if self._network != "DIN":
            del own["length"]
        if self._network == "NeuMF":
            del own["columns"]  # it knows users and items alone
        return _signature(own, getattr(models, self._network))


class SequenceRetriever:
    """`models.sequence_retriever` of one network; see `PairRanker`.

    >>> sorted(inspect.signature(SequenceRetriever("SASRec")).parameters)[:4]
    ['batch_size', 'blocks', 'calibration', 'content']
    """

    def __init__(self, network: str):
        self._network = network

    def __call__(self, **settings: Any) -> Any:
        from . import models

        return models.sequence_retriever(getattr(models, self._network), **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        from . import models

        network = getattr(models, self._network)
        own = dict(inspect.signature(models.sequence_retriever).parameters)
        del own["network"], own["settings"]
        if not network.masks:
            del own["mask_share"]
        return _signature(own, network)


class TowerRetriever:
    """`models.tower_retriever`.

    >>> "temperature" in inspect.signature(TowerRetriever()).parameters
    True
    """

    def __call__(self, **settings: Any) -> Any:
        from . import models

        return models.tower_retriever(**settings)

    @property
    def __signature__(self) -> inspect.Signature:
        from . import models

        own = dict(inspect.signature(models.tower_retriever).parameters)
        del own["factors"]  # which is no setting
        return inspect.Signature(list(own.values()))


def _signature(own: dict[str, inspect.Parameter], network: Any) -> inspect.Signature:
    """The settings of a trainer and those of its network."""
    from .models.recommenders import settings_of

    return inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in (own | settings_of(network)).values()])
