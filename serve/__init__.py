"""Grounded answers, the HTTP API and the web page."""

from serve.app import create_app

__all__ = ["create_app"]
