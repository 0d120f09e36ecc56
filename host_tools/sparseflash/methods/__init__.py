"""Systems of activation sparsity behind one interface: site, score, selection, budget.

``registry`` names them, ``budgets`` shares a level over layers and sites, ``masks`` applies them
to the float model, ``bytes`` counts what they read, ``study`` measures, ``report`` shows.
"""
