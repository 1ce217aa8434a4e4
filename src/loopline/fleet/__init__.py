"""Servers, their gateway and what watches them, as processes of one machine."""
