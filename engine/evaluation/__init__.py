"""Metrics and the protocols that apply them."""

from .clicks import Calibration, auc, calibration, evaluate_clicks, log_loss
from .metrics import hit_rate_at_k, mae, map_at_k, mrr_at_k, ndcg_at_k, precision_at_k, recall_at_k, rmse
from .protocols import Evaluation, evaluate, evaluate_ratings, evaluate_sampled

__all__ = [
    "Calibration",
    "Evaluation",
    "auc",
    "calibration",
    "evaluate",
    "evaluate_clicks",
    "evaluate_ratings",
    "evaluate_sampled",
    "hit_rate_at_k",
    "log_loss",
    "mae",
    "map_at_k",
    "mrr_at_k",
    "ndcg_at_k",
    "precision_at_k",
    "recall_at_k",
    "rmse",
]
