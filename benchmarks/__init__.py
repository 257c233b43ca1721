"""What this pipeline costs, beside a plain implementation and beside what the machine could do.

Read on in this order: ``sizes`` (how large), ``scene`` (what is worked on), ``projects`` (our side's
folders), ``reference`` and ``plain_network`` (the procedure without any care), ``floors`` (what no
implementation can beat), ``checks`` (that results agree), ``measure`` and ``worker`` (how it is
timed), ``rows`` (what is compared with what), ``results`` (table and JSON), ``__main__``.
"""
