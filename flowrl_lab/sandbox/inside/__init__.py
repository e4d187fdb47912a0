"""What runs inside the sandbox's own process: standard library only.

``start.py`` is run as a script by a bare interpreter, which finds its neighbours as
plain modules; nothing here may import flowrl_lab.
"""
