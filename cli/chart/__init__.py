"""The Helm chart, rendered here: a strict reading of the part of Helm that our chart uses. Pure.

`ambit install` needs no helm binary. What the chart does not use is not known, and an unknown
construct is an error with its file and line rather than a guess; a test renders the chart with the
real Helm over all profiles and many settings and compares.
"""
