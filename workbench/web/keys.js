() => {
  if (location.search.includes('token=')) history.replaceState(null, '', location.pathname);
  const press = (id) => document.querySelector(`#${id}:not([disabled])`)?.click();
  const by = (name) => document.querySelector(`#by input[value=${name}]`)?.click();
  const keys = {
    n: () => press('step'), b: () => press('back'), r: () => press('play'), p: () => press('pause'),
    1: () => by('phase'), 2: () => by('round'), 3: () => by('token'),
  };
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const typing = 'input:not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]';
    if (event.target.closest(typing)) return;
    keys[event.key.toLowerCase()]?.();
  });
}
