"""Constraints: which tokens may come next, a function of the text so far.

    import workbench as wb
    lm = wb.load("embedded")
    trace = wb.decode(lm, "port = ", constraint=wb.Regex(r"[1-9][0-9]{2,3}\\n"), max_new_tokens=12)
    print(repr(trace.text), trace.end["reason"])  # '9993\\n<|endoftext|>' eos
    assert trace.text[:3].isdigit()
    print(trace.tokens[["text", "allowed_count", "allowed_mass"]])

The mask comes first, before processors and cuts, in `Sampling.dist`, of which all distributions of a run are made.
"""

from workbench.members import room

__getattr__ = room(__name__)
