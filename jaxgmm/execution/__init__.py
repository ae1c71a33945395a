"""Execution: how programs are compiled, filled and shared out. Nothing here knows what a fit is.

A function becomes a program for the platform of its arguments (`programs`); calls of one for many
data sets go by `blocks` over `threads`. Within a program `tasks` are done so many at a time, and
loops, some of which end early, wait in a `queue` for slots that are refilled.
"""
