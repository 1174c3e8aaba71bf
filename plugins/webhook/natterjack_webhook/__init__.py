"""Webhooks: signed HTTP requests from outside wake agents, and what agents bring about is posted to others."""

from natterjack_webhook.agent import WebhookAgent, natterjack_agents
from natterjack_webhook.trigger import WebhookTrigger, natterjack_triggers

__all__ = ["WebhookAgent", "WebhookTrigger", "natterjack_agents", "natterjack_triggers"]
