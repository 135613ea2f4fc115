"""Serve and predict on several machines with Ray."""

from labsupport.scale import bulk, figures, local_cluster
from labsupport.scale.bulk import predict_folder
from labsupport.scale.deployment import Deployed, deploy
from labsupport.scale.front import Front
from labsupport.scale.local_cluster import LocalCluster

__all__ = [
    "Deployed",
    "Front",
    "LocalCluster",
    "bulk",
    "deploy",
    "figures",
    "local_cluster",
    "predict_folder",
]
