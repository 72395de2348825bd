(** Theorem F for real matrices and links of rank at most r. A singular value decomposition of every gradient is a hypothesis;
    what `chain.v` asks of the truncated gradient is proved from it. *)

From FrankWolfe Require Import setting assumptions lemmas.
From FrankWolfe Require chain.

(** * Matrices *)

(** [n] numbers: a function of which the values at 1, ..., n count. *)
Definition dot (n : nat) (x y : nat -> R) : R := sum (fun i => x i * y i) n.

(** The trace inner product of [d] by [k] matrices. *)
Definition trace (d k : nat) (X Y : nat -> nat -> R) : R := sum (fun i => dot k (X i) (Y i)) d.

Lemma dot_sym n x y : dot n x y = dot n y x.
Proof. apply sum_ext. intros; ring. Qed.

Lemma dot_plus n x y z : dot n (fun i => x i + y i) z = dot n x z + dot n y z.
Proof. unfold dot. rewrite <- sum_plus. apply sum_ext. intros; ring. Qed.

Lemma dot_scale n a x z : dot n (fun i => a * x i) z = a * dot n x z.
Proof. unfold dot. rewrite <- sum_scale. apply sum_ext. intros; ring. Qed.

Lemma dot_nonneg n x : 0 <= dot n x x.
Proof. apply sum_nonneg. intros; apply Rle_0_sqr. Qed.

Lemma trace_sym d k X Y : trace d k X Y = trace d k Y X.
Proof. apply sum_ext. intros; apply dot_sym. Qed.

Lemma trace_plus d k X Y Z : trace d k (fun i j => X i j + Y i j) Z = trace d k X Z + trace d k Y Z.
Proof. unfold trace. rewrite <- sum_plus. apply sum_ext. intros; apply dot_plus. Qed.

Lemma trace_scale d k a X Z : trace d k (fun i j => a * X i j) Z = a * trace d k X Z.
Proof. unfold trace. rewrite <- sum_scale. apply sum_ext. intros; apply dot_scale. Qed.

Lemma trace_nonneg d k X : 0 <= trace d k X X.
Proof. apply sum_nonneg. intros; apply dot_nonneg. Qed.

Definition tuple (n : nat) : InnerProductSpace := {|
  vector := nat -> R;
  plus := fun x y i => x i + y i;
  scale := fun a x i => a * x i;
  inner := dot n;
  inner_sym := dot_sym n;
  inner_plus := dot_plus n;
  inner_scale := dot_scale n;
  inner_nonneg := dot_nonneg n;
|}.

Definition matrix (d k : nat) : InnerProductSpace := {|
  vector := nat -> nat -> R;
  plus := fun X Y i j => X i j + Y i j;
  scale := fun a X i j => a * X i j;
  inner := trace d k;
  inner_sym := trace_sym d k;
  inner_plus := trace_plus d k;
  inner_scale := trace_scale d k;
  inner_nonneg := trace_nonneg d k;
|}.

(** [u v^T] *)
Definition outer {d k} (u : tuple d) (v : tuple k) : matrix d k := fun i j => u i * v j.

(** [X = B A] with [r] columns of [B] and [r] rows of [A]: what a link of rank [r] can be. *)
Definition rank_at_most {d k} (r : nat) (X : matrix d k) : Prop :=
  exists (B : nat -> tuple d) (A : nat -> tuple k),
  forall i j, (1 <= i <= d)%nat -> (1 <= j <= k)%nat -> X i j = sum (fun l => B l i * A l j) r.

Definition Orthonormal {E : InnerProductSpace} (u : nat -> E) (n : nat) : Prop :=
  forall l m, (1 <= l <= n)%nat -> (1 <= m <= n)%nat -> ⟨u l, u m⟩ = if Nat.eqb l m then 1 else 0.

(** [X = sum of s_l u_l v_l^T], with orthonormal [u] and [v] and [s_1 >= s_2 >= ... >= 0]. *)
Record SVD {d k} (X : matrix d k) := {
  size : nat;
  s : nat -> R;
  u : nat -> tuple d;
  v : nat -> tuple k;
  u_orthonormal : Orthonormal u size;
  v_orthonormal : Orthonormal v size;
  s_nonneg : forall l, (1 <= l <= size)%nat -> 0 <= s l;
  s_falls : forall l m, (1 <= l <= m)%nat -> (m <= size)%nat -> s m <= s l;
  s_sums_to : forall i j, (1 <= i <= d)%nat -> (1 <= j <= k)%nat -> X i j = sum (fun l => s l * outer (u l) (v l) i j) size;
}.

Arguments size {d k X}.
Arguments s {d k X}.
Arguments u {d k X}.
Arguments v {d k X}.

(** [[X]_r], the first [r] terms. *)
Definition truncated {d k} {X : matrix d k} (svd : SVD X) (r : nat) : matrix d k :=
  fun i j => sum (fun l => s svd l * outer (u svd l) (v svd l) i j) (Nat.min r (size svd)).

(** [|X|_{F,r}^2], the [r] largest squared singular values. *)
Definition largest {d k} {X : matrix d k} (svd : SVD X) (r : nat) : R := sum (fun l => s svd l ^ 2) (Nat.min r (size svd)).

(** Theorem F: the mean of the [r] largest squared singular values of the gradients. *)
Definition statement : Prop :=
  forall (d k r : nat) (P : Problem (matrix d k)) (run : Run (matrix d k)) (svd : forall t, SVD (gradient P run t)) (M : R),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M ->
  Static P -> HoldsEverywhere P -> ChainStep run (rank_at_most r) ->
  let eps := chain.shortfall P run (fun t => truncated (svd t) r) in
  mean (fun t => largest (svd t) r) (T run) <= chain.value M (beta P) (INR (T run)) (mean eps (T run)).

(** The best links of rank [r] fall short of nothing. *)
Definition statement_of_minimisers : Prop :=
  forall (d k r : nat) (P : Problem (matrix d k)) (run : Run (matrix d k)) (svd : forall t, SVD (gradient P run t)) (M : R),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M ->
  Static P -> HoldsEverywhere P -> ChainStep run (rank_at_most r) -> chain.Best_links P run (rank_at_most r) ->
  mean (fun t => largest (svd t) r) (T run) <= chain.value M (beta P) (INR (T run)) 0.

(** The mean operator norm: [|G|_op] is the largest [x^T G y] over vectors of norm 1. *)
Definition statement_of_operator_norms : Prop :=
  forall (d k r : nat) (P : Problem (matrix d k)) (run : Run (matrix d k)) (svd : forall t, SVD (gradient P run t)) (M : R)
    (x : nat -> tuple d) (y : nat -> tuple k),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M -> (1 <= r)%nat ->
  (forall t, ‖x t‖² <= 1 /\ ‖y t‖² <= 1) ->
  Static P -> HoldsEverywhere P -> ChainStep run (rank_at_most r) ->
  let eps := chain.shortfall P run (fun t => truncated (svd t) r) in
  mean (fun t => ⟨gradient P run t, outer (x t) (y t)⟩) (T run)
  <= sqrt (chain.value M (beta P) (INR (T run)) (mean eps (T run))).

(** * Proof *)

(** ** Sums *)

Lemma sum_of_one f m n : (1 <= m <= n)%nat -> sum (fun l => if Nat.eqb l m then f l else 0) n = f m.
Proof.
  induction n as [| n IH]; intros range; [lia |]. cbn [sum].
  destruct (Nat.eqb_spec (S n) m) as [<- | other]; [| rewrite IH by lia; ring].
  rewrite (sum_ext _ (fun _ => 0)); [rewrite sum_constant; simpl; ring |].
  intros l inside. destruct (Nat.eqb_spec l (S n)); [lia | reflexivity].
Qed.

Lemma sum_padded f m n : (m <= n)%nat -> sum (fun l => if Nat.leb l m then f l else 0) n = sum f m.
Proof.
  induction n as [| n IH]; intros range; [now replace m with O by lia |]. cbn [sum].
  destruct (Nat.leb_spec (S n) m) as [inside | beyond].
  - replace m with (S n) by lia. simpl. f_equal. apply sum_ext. intros l Hl. now rewrite (proj2 (Nat.leb_le _ _)) by lia.
  - rewrite IH by lia. ring.
Qed.

(** ** Orthonormal systems *)

Section Orthonormal_systems.
  Context {E : InnerProductSpace} (e : nat -> E) (n : nat) (orthonormal : Orthonormal e n).

  (** What is left of [x] without its parts along [e 1, ..., e m]. *)
  Fixpoint rest (x : E) (m : nat) : E := match m with O => x | S l => (rest x l + - ⟨x, e m⟩ * e m)%V end.

  Lemma rest_along_later x m l : (m < l <= n)%nat -> ⟨rest x m, e l⟩ = ⟨x, e l⟩.
  Proof.
    induction m as [| m IH]; intros range; [reflexivity |]. cbn [rest]. expand. rewrite IH by lia.
    rewrite orthonormal by lia. destruct (Nat.eqb_spec (S m) l); [lia | ring].
  Qed.

  Lemma rest_squared x m : (m <= n)%nat -> ‖rest x m‖² = ‖x‖² - sum (fun l => ⟨x, e l⟩ ^ 2) m.
  Proof.
    induction m as [| m IH]; intros range; [simpl; ring |].
    pose proof (rest_along_later x m (S m) ltac:(lia)) as along.
    pose proof (orthonormal (S m) (S m) ltac:(lia) ltac:(lia)) as unit.
    rewrite Nat.eqb_refl in unit. specialize (IH ltac:(lia)). cbn [sum rest]. expand.
    rewrite (inner_sym _ (e (S m)) (rest x m)), along, unit, IH. ring.
  Qed.

  Lemma bessel x : sum (fun l => ⟨x, e l⟩ ^ 2) n <= ‖x‖².
  Proof. pose proof (rest_squared x n (le_n n)). pose proof (inner_nonneg _ (rest x n)). lra. Qed.
End Orthonormal_systems.

(** ** Terms of a decomposition *)

Lemma outer_times_outer {d k} (a x : tuple d) (b y : tuple k) : ⟨outer a b, outer x y⟩ = ⟨a, x⟩ * ⟨b, y⟩.
Proof.
  simpl. unfold trace, outer. unfold dot at 2. rewrite Rmult_comm, <- sum_scale. apply sum_ext. intros i _.
  unfold dot. rewrite (Rmult_comm (sum _ _)), <- sum_scale. apply sum_ext. intros; ring.
Qed.

Section Decomposition.
  Context {d k : nat} {X : matrix d k} (svd : SVD X).

  Local Notation term l := (outer (u svd l) (v svd l)).
  Local Notation terms p := ((fun i j => sum (fun l => s svd l * term l i j) p) : matrix d k).

  Lemma terms_are_orthonormal : Orthonormal (fun l => term l) (size svd).
  Proof.
    intros l m Hl Hm. rewrite outer_times_outer, (u_orthonormal _ svd l m Hl Hm), (v_orthonormal _ svd l m Hl Hm).
    destruct (Nat.eqb l m); ring.
  Qed.

  Lemma times_terms (Y : matrix d k) p : ⟨terms p, Y⟩ = sum (fun l => s svd l * ⟨term l, Y⟩) p.
  Proof.
    induction p as [| p IH].
    - simpl. unfold trace, dot. rewrite (sum_ext _ (fun _ => 0)); [rewrite sum_constant; ring |]. intros i _.
      rewrite (sum_ext _ (fun _ => 0)); [rewrite sum_constant; ring |]. intros; simpl; ring.
    - transitivity ⟨plus (terms p) (scale (s svd (S p)) (term (S p))), Y⟩; [reflexivity |].
      now rewrite inner_plus, inner_scale, IH.
  Qed.

  Lemma times_whole (Y : matrix d k) : ⟨X, Y⟩ = ⟨terms (size svd), Y⟩.
  Proof.
    apply sum_ext. intros i Hi. apply sum_ext. intros j Hj. now rewrite (s_sums_to _ svd i j Hi Hj).
  Qed.

  Lemma terms_along_term p m : (1 <= m <= p)%nat -> (p <= size svd)%nat -> ⟨terms p, term m⟩ = s svd m.
  Proof.
    intros Hm Hp. rewrite times_terms. rewrite <- (sum_of_one (s svd) m p Hm). apply sum_ext. intros l Hl.
    rewrite (terms_are_orthonormal l m) by lia. destruct (Nat.eqb l m); ring.
  Qed.

  Lemma terms_times_fewer p q : (q <= p)%nat -> (p <= size svd)%nat -> ⟨terms p, terms q⟩ = sum (fun l => s svd l ^ 2) q.
  Proof.
    intros Hq Hp. rewrite inner_sym, times_terms. apply sum_ext. intros l Hl.
    rewrite (inner_sym _ (term l)), terms_along_term by lia. ring.
  Qed.

  Variable r : nat.

  Lemma truncated_squared : ‖truncated svd r‖² = largest svd r.
  Proof. apply terms_times_fewer; lia. Qed.

  Lemma truncated_projects : ⟨X, truncated svd r⟩ = ‖truncated svd r‖².
  Proof. rewrite truncated_squared, times_whole. apply terms_times_fewer; lia. Qed.

  Lemma truncated_has_rank a : rank_at_most r (a * truncated svd r).
  Proof.
    set (q := Nat.min r (size svd)).
    exists (fun l i => if Nat.leb l q then a * s svd l * u svd l i else 0), (v svd). intros i j _ _.
    rewrite (sum_ext _ (fun l => if Nat.leb l q then a * (s svd l * term l i j) else 0)).
    - rewrite sum_padded by lia. simpl. unfold truncated. now rewrite sum_scale.
    - intros l _. unfold outer. destruct (Nat.leb l q); ring.
  Qed.
End Decomposition.

(** ** The operator norm *)

Section Operator_norm.
  Context {d k : nat} {X : matrix d k} (svd : SVD X) (x : tuple d) (y : tuple k).
  Hypotheses (x_unit : ‖x‖² <= 1) (y_unit : ‖y‖² <= 1).

  Local Notation a l := ⟨x, u svd l⟩.
  Local Notation b l := ⟨y, v svd l⟩.

  Lemma form_is_a_sum : ⟨X, outer x y⟩ = sum (fun l => s svd l * (a l * b l)) (size svd).
  Proof.
    rewrite (times_whole svd), times_terms. apply sum_ext. intros l _.
    now rewrite outer_times_outer, (inner_sym _ x), (inner_sym _ y).
  Qed.

  (** [|a b| <= (a^2 + b^2)/2], [s_l <= s_1], and Bessel. *)
  Lemma form_below_first : (1 <= size svd)%nat -> Rabs ⟨X, outer x y⟩ <= s svd 1.
  Proof.
    intros some. pose proof (bessel _ _ (u_orthonormal _ svd) x). pose proof (bessel _ _ (v_orthonormal _ svd) y).
    pose proof (s_nonneg _ svd 1 ltac:(lia)).
    set (half := fun l => s svd 1 / 2 * (a l ^ 2 + b l ^ 2)).
    assert (bound : sum half (size svd) <= s svd 1).
    { unfold half. rewrite sum_scale, sum_plus. nra. }
    assert (each : forall l, (1 <= l <= size svd)%nat -> - half l <= s svd l * (a l * b l) <= half l).
    { intros l range. pose proof (s_nonneg _ svd l range). pose proof (s_falls _ svd 1 l ltac:(lia) ltac:(lia)).
      unfold half.
      pose proof (pow2_ge_0 (a l + b l)). pose proof (pow2_ge_0 (a l - b l)).
      pose proof (pow2_ge_0 (a l)). pose proof (pow2_ge_0 (b l)). split; nra. }
    rewrite form_is_a_sum. apply Rabs_le. split.
    - apply Rle_trans with (sum (fun l => - 1 * half l) (size svd)); [rewrite sum_scale; lra |].
      apply sum_le. intros l range. specialize (each l range). lra.
    - eapply Rle_trans; [| exact bound]. apply sum_le. intros l range. apply (each l range).
  Qed.

  Lemma form_squared_below_largest r : (1 <= r)%nat -> ⟨X, outer x y⟩ ^ 2 <= largest svd r.
  Proof.
    intros some. destruct (size svd) as [| n] eqn:n_terms.
    - rewrite form_is_a_sum. unfold largest. rewrite n_terms, Nat.min_0_r. simpl. lra.
    - apply Rle_trans with (s svd 1 ^ 2).
      + rewrite <- (pow2_abs ⟨X, outer x y⟩). apply pow_incr. split; [apply Rabs_pos | apply form_below_first; lia].
      + unfold largest. rewrite n_terms. replace (Nat.min r (S n)) with (S (Nat.min (pred r) n)) by lia.
        (* the first of the terms *)
        generalize (Nat.min (pred r) n). intros m. induction m as [| m IH]; [simpl; lra |].
        change (sum ?f (S (S m))) with (sum f (S m) + f (S (S m))). pose proof (pow2_ge_0 (s svd (S (S m)))). lra.
  Qed.
End Operator_norm.

(** ** The chain *)

Section Chain.
  Context {d k : nat} (P : Problem (matrix d k)) (run : Run (matrix d k)) (svd : forall t, SVD (gradient P run t)) (r : nat).

  Local Notation cut := (fun t => truncated (svd t) r).

  Lemma truncation_descends : chain.Descent P run (rank_at_most r) cut.
  Proof. intros t _. split; [intros a; apply truncated_has_rank | apply truncated_projects]. Qed.

  Lemma restricted_is_largest : mean (chain.restricted cut) (T run) = mean (fun t => largest (svd t) r) (T run).
  Proof. unfold mean. f_equal. apply sum_ext. intros t _. apply truncated_squared. Qed.
End Chain.

Theorem ChainBoundForMatrices : statement.
Proof.
  intros d k r P run svd M some smooth bent initial static everywhere links eps. rewrite <- restricted_is_largest.
  apply chain.ChainBound with (rank_at_most r); auto using truncation_descends.
Qed.

Theorem ChainMinimisersForMatrices : statement_of_minimisers.
Proof.
  intros d k r P run svd M some smooth bent initial static everywhere links best. rewrite <- restricted_is_largest.
  apply chain.ChainMinimisers with (rank_at_most r); auto using truncation_descends.
Qed.

Theorem ChainOperatorNorms : statement_of_operator_norms.
Proof.
  intros d k r P run svd M x y some smooth bent initial wide unit static everywhere links eps.
  apply Rle_trans with (mean (fun t => sqrt (chain.restricted (fun t => truncated (svd t) r) t)) (T run)).
  - apply mean_le; [assumption |]. rewrite <- sum_is_mean by assumption. apply sum_le. intros t _. destruct (unit t).
    (* <G, x y^T> <= |<G, x y^T>| <= |G|_{F,r} *)
    eapply Rle_trans; [apply Rle_abs |]. rewrite <- sqrt_Rsqr_abs. apply sqrt_le_1_alt.
    unfold chain.restricted. rewrite truncated_squared, Rsqr_pow2. now apply form_squared_below_largest.
  - apply chain.ChainMeanRoot with (rank_at_most r); auto using truncation_descends.
Qed.
