"""What a machine has to run bundles with, what it lacks, and the command that would add it.

`facts` reads the machine, `findings` judges what was read, `advice` says what to run. Only `facts`
touches the machine, so that any machine can be judged on any other.
"""
