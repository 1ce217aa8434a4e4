"""Servers, their gateway and the programs that watch them, as processes of one machine."""
