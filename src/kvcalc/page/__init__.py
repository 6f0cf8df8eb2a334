"""The calculator as one page: the engines' own formulas exported, and a few lines of JavaScript that evaluate them.

How an answer gets into the page
    An engine states its rule as named quantities whose formulas hold for any context and batch size
    (:mod:`kvcalc.derivation`). Those texts are what the page carries (:mod:`kvcalc.page.formulas`) and what
    ``calculator.js`` evaluates, with integers of any size and with floats only where the engine itself has them. There
    is no second implementation of a rule: a search that an engine needs is a formula too (``smallest_reaching``), and
    a setup whose derivation is not the same text for every question is left out and says so.

What is enumerated, and what is not
    Model, engine, formats of K and V, weights format and tensor-parallel size change which formulas hold, and so does
    one of a version, an option or a draft (:mod:`kvcalc.page.offers`): each combination is prepared by the library
    (:mod:`kvcalc.page.tables`) and equal ones are kept once. Several of the last three together would be as many again:
    the page refuses them and says that the command line has them. Context, batch size, and what an engine takes from a
    device (``max_num_batched_tokens``, ``hopper`` ...) are inputs of the formulas: lines of a derivation that are a
    number, which the page replaces.

How it stays small
    A derivation is split into its lines without numbers, each kept once for all models, and its numbers
    (:mod:`kvcalc.page.packing`); models are columns, so that what is alike in them stands side by side. All of it is
    one JSON text, deflated, in base64, which browsers inflate themselves.

A few rules that are no formula of an engine are written twice and held equal by tests: what is left of a device for the
cache and what fits into it (:mod:`kvcalc.fitting`), and the line that starts a server (:mod:`kvcalc.serving`).
"""
