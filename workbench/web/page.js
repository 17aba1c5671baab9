() => {
  if (location.search.includes('token=')) history.replaceState(null, '', location.pathname + location.hash);
  const $ = (id) => document.getElementById(id);
  const button = (text, label, act) => {
    const one = document.createElement('button');
    one.type = 'button';
    one.textContent = text;
    one.className = 'wb-top-button';
    one.setAttribute('aria-label', label);
    one.title = label;
    one.addEventListener('click', act);
    return one;
  };

  // A pane over the page: the drawer with the form, or what can be shared. The rest does not hear keys meanwhile.
  let from = null;
  const panes = { drawer: 'wb-drawn', share: 'wb-sharing' };
  const rest = () => ['head', 'setup', 'tabs'].map($).filter(Boolean);
  const close = () => {
    for (const name of Object.values(panes)) document.body.classList.remove(name);
    for (const one of rest()) one.inert = false;
    from?.focus();
    from = null;
  };
  const open = (id, group, opener) => {
    close();
    from = opener;
    document.body.classList.add(panes[id]);
    for (const one of rest()) one.inert = true;
    const place = group ? $(`of-${group.toLowerCase()}`) : $(id), head = place?.querySelector('button.label-wrap');
    if (head && !head.classList.contains('open')) head.click();
    setTimeout(() => {
      place?.scrollIntoView({ block: 'nearest' });
      (place?.querySelector('textarea:enabled') ?? head ?? $(id).querySelector('button'))?.focus({ preventScroll: true });
    }, 80);
  };
  addEventListener('workbench-drawer', ({ detail }) => open('drawer', detail.group, detail.from));
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && from) { event.stopPropagation(); close(); }
  }, true);
  document.addEventListener('pointerdown', (event) => {
    if (from && !event.target.closest('#drawer, #share, .options, [role=listbox], dialog')) close();
  });

  const dress = () => {
    const head = $('head');
    if (!head || head.querySelector('.wb-top')) return;
    const bar = document.createElement('div');
    bar.className = 'wb-top';
    const dark = () => document.body.classList.contains('dark');
    const theme = button('◐', 'light or dark', () => {
      document.body.classList.toggle('dark');
      localStorage.setItem('workbench-theme', dark() ? 'dark' : 'light');
    });
    bar.append(button('Share', 'files, and the run as Python', (event) => open('share', null, event.currentTarget)), theme,
      button('?', 'keys and words', () => dispatchEvent(new CustomEvent('workbench-help'))));
    head.append(bar);
    for (const id of ['drawer', 'share']) {
      const pane = $(id);
      const head = document.createElement('div'), name = id === 'drawer' ? 'Settings' : 'Share';
      head.className = 'wb-pane-head';
      head.append(name, button('✕', 'close', close));
      pane.setAttribute('role', 'dialog');
      pane.setAttribute('aria-label', name);
      pane.prepend(head);
      pane.addEventListener('keydown', (event) => event.stopPropagation()); // keys of the view are not meant
    }
  };
  const kept = localStorage.getItem('workbench-theme');
  if (kept) document.body.classList.toggle('dark', kept === 'dark');
  new MutationObserver(dress).observe(document.body, { childList: true, subtree: true });
  dress();

  // What is opened is shown, also when it was dropped somewhere.
  document.addEventListener('change', (event) => {
    if (event.target.type === 'file') document.querySelector('#tabs [role=tab]')?.click();
  }, true);
  document.addEventListener('dragover', (event) => { if (event.dataTransfer?.types.includes('Files')) event.preventDefault(); });
  document.addEventListener('drop', (event) => {
    const file = event.dataTransfer?.files[0], input = document.querySelector('#open input[type=file], input#open') ?? $('open')?.parentElement.querySelector('input[type=file]');
    if (!file || !input) return;
    event.preventDefault();
    const list = new DataTransfer();
    list.items.add(file);
    input.files = list.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  });

  // The status line turns to caution where something was refused.
  const status = new MutationObserver(() => {
    const wrong = $('status').querySelector('.wb-error');
    if (wrong) dispatchEvent(new CustomEvent('workbench-failed', { detail: wrong.textContent }));
  });
  const watch = setInterval(() => {
    if ($('status')) { status.observe($('status'), { childList: true, subtree: true }); clearInterval(watch); }
  }, 100);
}
