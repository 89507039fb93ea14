// Mathematics is set by the copy of MathJax beside this file, and nothing else is fetched.
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"]],
    displayMath: [["\\[", "\\]"]],
    processEscapes: true,
    processEnvironments: true,
    macros: { E: "\\mathbb{E}", R: "\\mathbb{R}" },
  },
  options: { ignoreHtmlClass: ".*", processHtmlClass: "arithmatex", enableMenu: false },
};
