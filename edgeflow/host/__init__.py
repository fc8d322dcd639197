"""What runs a cluster on a machine: files, certificates, processes, the link proxy.

What it is: everything around the agent: provisioning of every file a PoP needs, supervision of its processes in embedded mode, finding a
running cluster, and the user-space proxy that gives PoP links a delay.
What it is not: part of a PoP's work. No event passes through here, except as bytes through `wan`.
What must stay true: it speaks to brokers, stores and containers only as processes and files; redis, paho and docker are not imported here.
"""
