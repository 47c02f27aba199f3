"""Weft as Docker's network and address plugin: `docker network create -d weft --ipam-driver weft`."""
