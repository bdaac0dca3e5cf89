"""Raksha: data protection for virtual machines.

Layers, lowest last; imports run downwards only (`lint-imports` checks it)::

    cmd
    agent
    backup | restore
    virt | vault | db
    qcow2 | journal | retention
    config
    types | states | errors | progress
    crash

`client` stands beside them: it asks a service over HTTP, is installed alone, and imports no other part.
"""

__version__ = "0.1.0"
