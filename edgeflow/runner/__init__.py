"""Runner: makes what runs at this PoP equal to what the manifests say.

Belongs here: the reconciler (level-triggered: desired against observed), the drivers that start and stop instances (processes, containers), and
what instances are made from (bundles, virtual environments, images).
Does not belong here: what instances are given to do (flow), or who may change manifests (api).
The docker package is imported in `docker.py` and `images.py` only, and only when a cluster runs in Docker mode.
"""
