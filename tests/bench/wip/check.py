exec(open(__file__.rsplit('/',1)[0]+'/proto.py').read())
import pyvips, zipfile, numpy as np
def picture(w,h,kind,seed):
    rnd=np.random.default_rng(seed)
    a=np.full((h,w,3),255,np.uint8)
    if kind=='noise': a=rnd.integers(0,256,(h,w,3),dtype=np.uint8)
    elif kind=='gray': a=np.repeat(rnd.integers(0,256,(h,w,1),dtype=np.uint8),3,2)
    elif kind=='mixed':
        for _ in range(30):
            x,y=rnd.integers(0,w),rnd.integers(0,h); ww,hh=rnd.integers(1,max(2,w//3)),rnd.integers(1,max(2,h//3))
            c=rnd.integers(0,256,3) if rnd.random()<.4 else np.full(3,rnd.integers(0,256))
            a[y:y+hh,x:x+ww]=c
    return np.ascontiguousarray(a)
def dz(a,tile,overlap):
    h,w,_=a.shape
    im=pyvips.Image.new_from_memory(a.tobytes(),w,h,3,'uchar').copy(interpretation='srgb')
    d=tempfile.mkdtemp(dir='/dev/shm')
    im.dzsave(d+'/t',layout='dz',container='zip',compression=0,depth='onepixel',tile_size=tile,overlap=overlap,suffix='.png[compression=0]',skip_blanks=0,background=[255],keep='none')
    out={}
    with zipfile.ZipFile(d+'/t.zip') if os.path.exists(d+'/t.zip') else zipfile.ZipFile(d+'/t') as z:
        for n in z.namelist():
            if n.endswith('.png') :
                l,f=n.split('/')[-2:]; c,r=f[:-4].split('_'); out[int(l),int(c),int(r)]=np.asarray(Image.open(io.BytesIO(z.read(n))).convert('RGB'))
    import shutil; shutil.rmtree(d)
    return out
def scan(d):
    i=2
    while d[i+1]!=0xda: i+=2+int.from_bytes(d[i+2:i+4],'big')
    return d[i+2+int.from_bytes(d[i+2:i+4],'big'):]
bad=0; n=0
rnd=random.Random(1)
cases=[(1,1),(2,1),(1,3),(255,255),(256,257),(513,300),(777,1025),(1300,900)]
for w,h in cases:
  for kind in ('noise','gray','mixed','white'):
    for tile,ov in ((256,1),(254,1),(256,0),(512,2),(510,0),(1024,1),(254,2)):
      q=rnd.choice([1,30,60,85,95,100])
      a=picture(w,h,kind,w*h)
      r,prev,(pl,pw,ph)=cut(a.ctypes.data,w,h,tile=tile,overlap=ov,q=q)
      assert r==0,(r,w,h,kind,tile,ov)
      tiles,whites=read(); ref=dz(a,tile,ov)
      if set(tiles)!=set(ref): print('SET',w,h,kind,tile,ov,len(tiles),len(ref)); bad+=1; continue
      for k,px in ref.items():
        n+=1
        gray=(px[:,:,0]==px[:,:,1]).all() and (px[:,:,1]==px[:,:,2]).all()
        im=Image.fromarray(px[:,:,1],'L') if gray else Image.fromarray(px,'RGB')
        b=io.BytesIO(); im.save(b,'JPEG',quality=q,**({} if gray else {'subsampling':0}))
        if scan(b.getvalue())!=scan(tiles[k]): bad+=1; print('SCAN',w,h,kind,tile,ov,q,k,gray) if bad<20 else None
      if pl==Pyramid(w,h,tile,ov).max_level and prev!=a.tobytes(): print('PREVIEW'); bad+=1
print(n,'tiles',bad,'bad')
