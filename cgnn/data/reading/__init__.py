"""From files of many forms to checked crystals: one door for each form, one gate for all."""
