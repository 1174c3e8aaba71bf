"""Agents over HTTP: asked by whoever shows a token, and asking those that are served elsewhere."""

from natterjack_http.peers import HttpPeers, HttpsPeers, natterjack_peers
from natterjack_http.trigger import HttpTrigger, natterjack_triggers

__all__ = ["HttpPeers", "HttpTrigger", "HttpsPeers", "natterjack_peers", "natterjack_triggers"]
