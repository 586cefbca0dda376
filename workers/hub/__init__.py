"""Checkpoints from Hugging Face, ModelScope and Modelers: the only room of the workers that goes to the network for
weights, and only when it is asked. No torch, no bus; run by the command line and, as a process, by an agent.
"""
