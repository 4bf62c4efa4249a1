"""Routing policies: which replica gets a request."""

from policies.routing.adapter_affinity import AdapterAffinity
from policies.routing.least_loaded import LeastLoaded
from policies.routing.protocol import ReplicaView, RoutedRequest, RoutingPolicy
from policies.routing.round_robin import RoundRobin
from policies.routing.weighted import Weighted

__all__ = [
    "AdapterAffinity",
    "LeastLoaded",
    "ReplicaView",
    "RoundRobin",
    "RoutedRequest",
    "RoutingPolicy",
    "Weighted",
]
