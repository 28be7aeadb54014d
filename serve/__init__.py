"""Grounded answers, the HTTP API and the web page."""
