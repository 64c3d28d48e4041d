"""What the three studies share: stages whose results carry their identity, the loop over arms and
seeds, criteria, profiles.
"""
