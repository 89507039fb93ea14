"""How signals and gradients pass through depth: order, chaos and criticality (Poole et al. 2016; Schoenholz et al. 2017)."""
